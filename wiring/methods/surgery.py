"""Live: T_ij ← 0 where |w_ij| ≤ 0.9 τ, 1 where |w_ij| > 1.1 τ, else as it was; learn: all edges,
by ∂L/∂(W ⊙ T), so that what was cut by mistake comes back.

τ = max(μ + c·σ, 0) of the bundle's nonzero |w| when surgery begins. T is refreshed with probability
(1 + γ·i)^(−p) after step i of surgery, until a stop step.      (Guo 2016, eq. 3 and 4)

The paper starts from a trained network: the first phase trains it. The count of live edges is what
τ makes it, whatever the budget; `threshold = "budget"` solves τ at every refresh for exactly k:
with s = |w| / 0.9 of live and |w| / 1.1 of dead edges, those of the k largest s live. Where τ would
empty a scope, its strongest edge stays. `pretrain` and `stop` are shares of training; the paper
chose its stop iterations by hand.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from wiring.graph.phased import CompleteFirst, PretrainOptions
from wiring.graph.phases import Phase
from wiring.graph.rules import EDGE_RULES, ScopeEdges


class Options(PretrainOptions):
    """The paper's `c`, `gamma` and p, here `power`; hysteresis between `lower` τ and `upper` τ; no
    refresh after the share `stop` of surgery. `threshold`: τ by the `moments` of the weights, or
    the one that keeps the `budget`."""

    c: float = 3.0
    gamma: NonNegativeFloat = 1e-3
    power: NonNegativeFloat = 1.0
    lower: PositiveFloat = 0.9
    upper: PositiveFloat = 1.1
    stop: Annotated[float, Field(gt=0, le=1)] = 0.75
    threshold: Literal["moments", "budget"] = "moments"


@EDGE_RULES.register("surgery")
class DynamicNetworkSurgery(CompleteFirst):
    """Cut weak edges and splice back those that grew strong, with hysteresis."""

    paper = "Guo, Yao, Chen: Dynamic Network Surgery for Efficient DNNs, NeurIPS 2016"
    use = (
        "Where edges that were cut too early shall be able to come back while the network "
        "trains on, with thresholds by layer. dnw has no threshold to set."
    )
    learns_dead_edges = True
    Options = Options
    tau: Tensor

    def __init__(
        self, budget: int, options: dict[str, Any] | None = None, *, limit: float | None = None
    ) -> None:
        super().__init__(budget, options, limit=limit)
        self.keeps_budget = self.options.threshold == "budget"

    def allocate(self, edges: int) -> None:
        self.register_buffer("tau", torch.zeros(edges))

    def phases(self) -> tuple[Phase, ...]:
        share = self.options.pretrain
        return (Phase("train", share), Phase("surgery", 1 - share, self.options.lr))

    def update(self, edges: ScopeEdges) -> Tensor | None:
        if self.clock.phase == 0:
            return None
        if self.clock.begins_phase:
            self.tau.copy_(self.thresholds(edges))
        return self.refreshed(edges) if self._refreshes() else None

    def probability(self, iteration: int) -> float:
        """How likely a refresh is after so many steps of surgery."""
        return float((1 + self.options.gamma * iteration) ** -self.options.power)

    def _refreshes(self) -> bool:
        """Draws whether to refresh now."""
        clock = self.clock
        assert clock.phase_end is not None
        iteration = clock.step - clock.phase_begin
        if iteration >= self.options.stop * (clock.phase_end - clock.phase_begin):
            return False
        return bool(torch.rand(()) < self.probability(iteration))

    def thresholds(self, edges: ScopeEdges) -> Tensor:
        """τ of every edge [E], the same within a bundle."""
        tau = torch.zeros_like(self.tau)
        strengths = edges.bundles(edges.weights().abs())
        usable = edges.bundles(edges.allowed)
        for part, strength, allowed in zip(edges.bundles(tau), strengths, usable, strict=True):
            nonzero = strength[allowed & (strength != 0)]
            if len(nonzero):
                deviation = nonzero.std(correction=0)
                part.fill_(max(float(nonzero.mean() + self.options.c * deviation), 0.0))
        return tau

    def refreshed(self, edges: ScopeEdges) -> Tensor:
        """The live edges after a refresh; a scope whose budget is all of its edges keeps them."""
        strength, live, options = edges.weights().abs(), edges.live, self.options
        if self.limit is None and self.budget == int(edges.allowed.sum()):
            return live
        if options.threshold == "budget":
            reach = torch.where(live, strength / options.lower, strength / options.upper)
            return self.strongest(reach, edges.allowed)
        stays = live & (strength > options.lower * self.tau)
        chosen = stays | (edges.allowed & (strength > options.upper * self.tau))
        return chosen if bool(chosen.any()) else self.strongest(strength, edges.allowed, 1)
