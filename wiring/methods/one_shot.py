"""Live: the k usable edges of largest |w| when the graph is built or takes over trained weights,
for good; learn: the live ones.

One round of pruning and no more, for networks that were trained before (Han 2015 without its
iterations). Training afterwards is fine-tuning.
"""

from __future__ import annotations

from torch import Tensor

from wiring.graph.rules import EDGE_RULES, EdgeRule


@EDGE_RULES.register("one-shot")
class OneShot(EdgeRule):
    """The k strongest edges of a trained network, chosen once."""

    paper = "Han et al.: Learning both Weights and Connections, NeurIPS 2015 (one round)"
    use = (
        "For a trained network that is to be pruned at once, and fine-tuned after. Where a whole "
        "training is to be had, magnitude and dnw reach higher accuracy at as many edges."
    )
    fixed = True

    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        return self.strongest(scores, allowed) if live is None else live
