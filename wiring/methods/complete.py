"""Live: every usable edge; learn: the same."""

from __future__ import annotations

from torch import Tensor

from wiring.graph.rules import EDGE_RULES, EdgeRule


@EDGE_RULES.register("complete")
class CompleteGraph(EdgeRule):
    """Every usable edge lives, whatever the budget: the dense upper bound."""

    paper = "Wortsman, Farhadi, Rastegari: Discovering Neural Wirings, NeurIPS 2019"
    use = (
        "Take it for the ordinary network, against which everything else is held. Any other "
        "rule where fewer edges shall live."
    )
    fixed = True
    keeps_budget = False

    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        return allowed
