"""Live: the k edges of largest |w|, after every step; in training each other edge acts with
probability 1 − ρ, drawn anew for every step; learn: all of them.

W̃ = W ⊙ (T + (1 − T) ⊙ B),  T the k strongest, B ~ Bernoulli(1 − ρ);  W̃ = W ⊙ T in evaluation.
Weights keep their sign; the code released with Wortsman 2019 trains |W|. ρ = 0.95 is that code's.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from wiring.config import Config
from wiring.graph.rules import EDGE_RULES, EdgeRule


class Options(Config):
    """`rate` is ρ: how often an edge that is not among the strongest is dropped in training."""

    rate: Annotated[float, Field(ge=0, le=1)] = 0.95


@EDGE_RULES.register("targeted-dropout")
class TargetedDropout(EdgeRule):
    """The k strongest edges always act, the others now and then while training."""

    paper = "Gomez et al.: Learning Sparse Networks Using Targeted Dropout, 2019"
    use = (
        "Where training shall prepare the network for one cut at its end: weak edges drop out "
        "at random until then. dnw cuts at every step instead and needs no rate."
    )
    learns_dead_edges = True
    drops = True
    Options = Options

    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        return self.strongest(scores, allowed)

    def act(self, scores: Tensor, live: Tensor, allowed: Tensor) -> Tensor:
        spared: Tensor = torch.rand(scores.shape, device=scores.device) >= self.options.rate
        return live | (allowed & spared)
