"""Live: k random edges; every ΔT steps the fraction p of smallest |w| of every scope goes, and as
many come in the whole network: in scope i the share M_i / Σ M, M_i the mean |m| of its live edges,
there where |m| of edges that do not live is largest; learn: all edges.

m ← β m + (1 − β) ∂L/∂w, for live and dead edges; only live weights are moved by their gradients.

So the number of a scope's live edges changes and that of the network stays (Dettmers 2019). Scopes
that keep all their edges take no part. p = 0.3 as a cosine to 0 and ΔT = 100 are those of the
comparison in Evci 2020; the paper starts at 0.5 and moves edges once an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from wiring.graph.budgets import apportion
from wiring.graph.regrow import Regrowing, RegrowOptions
from wiring.graph.rules import EDGE_RULES, EdgeRule, ScopeEdges


class Options(RegrowOptions):
    """`momentum` is β."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


@EDGE_RULES.register("snfs")
class SparseMomentum(Regrowing):
    """The weakest edges move to the scopes and places whose gradients agree over time."""

    paper = "Dettmers, Zettlemoyer: Sparse Networks from Scratch, 2019"
    use = (
        "Sparse training that also moves edges between layers, by momentum. It needs the "
        "momentum of dead edges; where that is too much memory, take rigl."
    )
    # Of its scope; the network keeps its total.
    keeps_budget = False
    Options = Options
    smoothed: Tensor
    grow: int = 0

    def allocate(self, edges: int) -> None:
        self.register_buffer("smoothed", torch.zeros(edges))

    def learn(self, live: Tensor, allowed: Tensor) -> Tensor:
        return allowed if self._moves_again() else live

    def _moves_again(self) -> bool:
        steps = self.clock.steps
        return steps is not None and self.clock.step < self.options.until * steps

    def before_step(self, edges: ScopeEdges) -> None:
        if self._moves_again():
            gradients = edges.gradients()
            self.smoothed.lerp_(gradients.to(self.smoothed.dtype), 1 - self.options.momentum)
            edges.put_gradients(torch.where(edges.live, gradients, 0))

    @classmethod
    def balance(cls, rules: Sequence[EdgeRule], edges: Sequence[ScopeEdges]) -> None:
        """Say how many edges each scope grows."""
        scopes = [
            (rule, seen)
            for rule, seen in zip(rules, edges, strict=True)
            if isinstance(rule, SparseMomentum) and rule.takes_part(seen)
        ]
        if not scopes or not scopes[0][0].moves_at(scopes[0][0].clock.step):
            return
        drops = [rule.drops_of(seen.live) for rule, seen in scopes]
        means = [float(rule.smoothed[seen.live].abs().mean()) for rule, seen in scopes]
        room = [
            int(seen.allowed.sum()) - int(seen.live.sum()) + drop
            for drop, (_, seen) in zip(drops, scopes, strict=True)
        ]
        least = torch.finfo(torch.float32).tiny  # where no gradient came yet, all are alike
        grown = apportion(sum(drops), [max(mean, least) for mean in means], room, least=0)
        for (rule, _), grow in zip(scopes, grown, strict=True):
            rule.grow = grow

    def takes_part(self, edges: ScopeEdges) -> bool:
        """Whether the scope's edges are chosen at all."""
        return self.budget < int(edges.allowed.sum())

    def update(self, edges: ScopeEdges) -> Tensor | None:
        if not self.moves_at(self.clock.step) or not self.takes_part(edges):
            return None
        return self.moved(edges, self.drops_of(edges.live), self.grow)

    def growth(self, edges: ScopeEdges) -> Tensor:
        return self.smoothed.abs()
