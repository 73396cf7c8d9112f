"""Live: all usable edges while a penalty draws weights to 0, then the k of largest |w|, after every
step; learn: all of them.

L + λ(t) Σ |w|,  so ∂L/∂w + λ(t) sign(w),  λ(t) = λ · t / T_cut up to the cut, then 0

Wortsman 2019 compares with an annealed L1 penalty without its constants; λ, the line and the cut at
half of training are ours.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from wiring.graph.phased import CompleteFirst, PretrainOptions
from wiring.graph.phases import Phase
from wiring.graph.rules import EDGE_RULES, ScopeEdges


class Options(PretrainOptions):
    """`penalty` is λ; after the cut training goes on at `lr` times the rate."""

    penalty: NonNegativeFloat = 1e-4
    lr: PositiveFloat = 0.1


@EDGE_RULES.register("l1-anneal")
class AnnealedL1(CompleteFirst):
    """An L1 penalty grows while the complete graph trains; then the k strongest edges live."""

    paper = "Wortsman, Farhadi, Rastegari: Discovering Neural Wirings, NeurIPS 2019"
    use = (
        "A baseline in which a growing penalty says which edges are wanted before the cut. "
        "Its strength needs tuning; dnw has nothing to tune."
    )
    learns_dead_edges = True
    needs_own_weights = True
    Options = Options

    def phases(self) -> tuple[Phase, ...]:
        share = self.options.pretrain
        return (Phase("penalty", share), Phase("cut", 1 - share, self.options.lr))

    def penalty(self) -> float:
        """λ(t) of the next step."""
        clock = self.clock
        if clock.phase > 0 or clock.phase_end is None:
            return 0.0
        return float(self.options.penalty * (clock.step + 1) / clock.phase_end)

    def before_step(self, edges: ScopeEdges) -> None:
        penalty = self.penalty()
        if penalty > 0:
            pull = torch.where(edges.allowed, edges.weights().sign(), 0)
            edges.put_gradients(edges.gradients() + penalty * pull)

    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        if live is None or self.clock.phase == 0:
            return allowed
        return self.strongest(scores, allowed)
