"""Live: k random edges; every ΔT steps the fraction f(t) of smallest |w| goes and as many come,
where |∂L/∂w| of edges that do not live is largest; learn: the live ones.

f(t) = α/2 · (1 + cos(π t / T_end)),  α = 0.3, ΔT = 100, T_end = 0.75 of training   (Evci 2020)

The gradient of dead edges is computed in the steps before edges move only, and moves no weight.
Grown edges begin with weight 0 and no momentum. A step that moves edges also updates weights, as
every other; the paper skips that one update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wiring.graph.regrow import Regrowing
from wiring.graph.rules import EDGE_RULES, ScopeEdges


@EDGE_RULES.register("rigl")
class RiggedLottery(Regrowing):
    """The weakest edges move to where the gradient asks for edges."""

    paper = "Evci et al.: Rigging the Lottery, ICML 2020"
    use = (
        "Where memory and time of training must stay those of the sparse network: edges grow "
        "where the gradient asks for them. Where dense training can be paid for, dnw is often "
        "better."
    )
    # |gradient| of all edges in the step under way.
    dense: Tensor | None = None

    def learn(self, live: Tensor, allowed: Tensor) -> Tensor:
        return allowed if self.moves_at(self.clock.step + 1) else live

    def before_step(self, edges: ScopeEdges) -> None:
        if self.moves_at(self.clock.step + 1):
            gradients = edges.gradients()
            self.dense = gradients.abs()
            edges.put_gradients(torch.where(edges.live, gradients, 0))

    def growth(self, edges: ScopeEdges) -> Tensor:
        assert self.dense is not None, "moves_at is the same before and after the step"
        dense, self.dense = self.dense, None
        return dense
