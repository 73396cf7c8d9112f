"""Live: all usable edges while the complete graph trains, then the k of largest |w|, for good;
learn: the live ones. Weights go on from where they are.

By default half of training for each; the second at a tenth of the rate, the best of Wortsman 2019.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from wiring.graph.phased import CompleteFirst, PretrainOptions
from wiring.graph.phases import Phase
from wiring.graph.rules import EDGE_RULES


class Options(PretrainOptions):
    """`lr` is 0.1 here: 0.01 where the complete graph is trained with 0.1."""

    lr: PositiveFloat = 0.1


@EDGE_RULES.register("fine-tune")
class FineTune(CompleteFirst):
    """Train the complete graph, keep its k strongest edges, train those on."""

    paper = "Wortsman, Farhadi, Rastegari: Discovering Neural Wirings, NeurIPS 2019"
    use = (
        "The plainest way to a sparse network: train all edges, cut once, train on at a lower "
        "rate. Several smaller cuts (magnitude), or a choice at every step (dnw), leave more "
        "accuracy at few edges."
    )
    Options = Options

    def phases(self) -> tuple[Phase, ...]:
        share = self.options.pretrain
        return (Phase("complete", share), Phase("fine-tune", 1 - share, self.options.lr))
