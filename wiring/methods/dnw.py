"""Live: the k edges of largest |w|, after every step; learn: all of them.

w_uv ← w_uv + ⟨Z_u, −α ∂L/∂I_v⟩  for live and hallucinated edges alike
"""

from __future__ import annotations

from torch import Tensor

from wiring.graph.rules import EDGE_RULES, EdgeRule


@EDGE_RULES.register("dnw")
class DiscoveringNeuralWirings(EdgeRule):
    """The k strongest edges live, and every usable edge goes on learning."""

    paper = "Wortsman, Farhadi, Rastegari: Discovering Neural Wirings, NeurIPS 2019"
    use = (
        "The first rule to try: it finds wirings while it trains, at full training cost, "
        "since dead edges learn too. Where training must be sparse as well, take rigl or set."
    )
    learns_dead_edges = True

    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        return self.strongest(scores, allowed)
