"""Live: the k edges of largest |w|, after every step; learn: the live ones only."""

from __future__ import annotations

from torch import Tensor

from wiring.graph.rules import EDGE_RULES, EdgeRule


@EDGE_RULES.register("dnw-no-update")
class DnwNoUpdate(EdgeRule):
    """The k strongest edges live, and dead edges receive no gradient: DNW's ablation."""

    paper = "Wortsman, Farhadi, Rastegari: Discovering Neural Wirings, NeurIPS 2019"
    use = (
        "The ablation of dnw: what the search for edges is worth without training the dead "
        "ones. For results take dnw."
    )

    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        return self.strongest(scores, allowed)
