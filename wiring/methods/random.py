"""Live: k usable edges drawn once, uniformly without replacement; learn: the live ones."""

from __future__ import annotations

import torch
from torch import Tensor

from wiring.graph.rules import EDGE_RULES, EdgeRule


@EDGE_RULES.register("random")
class RandomWiring(EdgeRule):
    """k edges drawn at random and kept: the baseline with the same budget as DNW."""

    paper = "Xie et al.: Exploring Randomly Wired Neural Networks, ICCV 2019"
    use = (
        "The control: what a budget of edges is worth without choosing. Every other rule "
        "should beat it."
    )
    fixed = True

    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        if live is not None:
            return live
        drawn = torch.rand(scores.shape, device=scores.device)
        return self.strongest(drawn, allowed, per_cost=False)
