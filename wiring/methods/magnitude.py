"""train → (prune → retrain) × rounds. Live: all usable edges, less those of |w| ≤ q · std(W) of
their bundle at every pruning; learn: the live ones. Dropout shrinks by √(C_r / C_0).

By default each round solves q for its share of the budget: the edges of largest |w| / std(W) stay,
usable · (k / usable)^(r / R) of them after round r of R, and exactly k after the last. With
`quality` q is given, as in the paper, and what is left is not k. std is that of the bundle's live
weights.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor

from wiring.errors import WiringError
from wiring.graph.phased import IterativePruning, PruningOptions
from wiring.graph.rules import EDGE_RULES, ScopeEdges


class Options(PruningOptions):
    """`quality` is q; without it q follows from the budget. Retraining runs at `lr` = 0.1 times
    the rate, as the paper does for LeNet."""

    quality: PositiveFloat | None = None


@EDGE_RULES.register("magnitude")
class MagnitudePruning(IterativePruning):
    """Edges weaker than a multiple of their layer's deviation go, in rounds with retraining."""

    paper = "Han et al.: Learning both Weights and Connections, NeurIPS 2015"
    use = (
        "The classic: train, cut, train on. A strong baseline where a full dense training can "
        "be paid for."
    )
    scales_dropout = True
    Options = Options

    def __init__(
        self, budget: int, options: dict[str, Any] | None = None, *, limit: float | None = None
    ) -> None:
        super().__init__(budget, options, limit=limit)
        self.keeps_budget = self.options.quality is None

    def prune(self, edges: ScopeEdges) -> Tensor:
        quality = relative(edges)
        if self.options.quality is None:
            return self.survivors(quality, edges)
        left: Tensor = edges.live & (quality > self.options.quality)
        if not bool(left.any()):
            raise WiringError(
                f"rule magnitude: quality {self.options.quality:g} removes every edge of a scope; "
                f"its strongest weighs {float(quality[edges.live].max()):g} standard deviations"
            )
        return left


def relative(edges: ScopeEdges) -> Tensor:
    """|w| / std(W) [E], with the deviation of each bundle's live weights around their mean."""
    result = edges.weights().abs()
    weights = edges.bundles(edges.weights())
    for part, weight, live in zip(
        edges.bundles(result), weights, edges.bundles(edges.live), strict=True
    ):
        deviation = weight[live].std(correction=0) if bool(live.any()) else weight.new_ones(())
        part /= deviation.clamp(min=torch.finfo(weight.dtype).tiny)
    return result
