"""Live: all usable edges while the complete graph trains, then the k of largest |w|, for good;
learn: the live ones. Every parameter goes back to its first value before the second phase:

f(x; θ₀) → f(x; θ_T) → T = top-k |θ_T| → f(x; T ⊙ θ₀)      (Frankle 2019, one shot)

By default half of training for each.
"""

from __future__ import annotations

from wiring.graph.phased import CompleteFirst, PretrainOptions
from wiring.graph.phases import Phase
from wiring.graph.rules import EDGE_RULES


@EDGE_RULES.register("lottery")
class LotteryTicket(CompleteFirst):
    """Train the complete graph, keep its k strongest edges, train those from the beginning."""

    paper = "Frankle, Carbin: The Lottery Ticket Hypothesis, ICLR 2019"
    use = (
        "To ask whether a wiring can be trained from its first weights. As a way to an "
        "accurate network fine-tune, which keeps the trained ones, is at least as good."
    )
    Options = PretrainOptions

    def phases(self) -> tuple[Phase, ...]:
        share = self.options.pretrain
        return (
            Phase("complete", share),
            Phase("ticket", 1 - share, self.options.lr, rewind=True),
        )
