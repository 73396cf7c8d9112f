"""Edge rules that keep their number of edges and move some of them every ΔT steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from wiring.config import Config
from wiring.errors import BudgetError, WiringError
from wiring.graph.rules import EdgeRule, ScopeEdges

INTERVAL = 100
FEWEST_UPDATES = 10  # what a training shorter than ten intervals is divided into


class RegrowOptions(Config):
    """Every `interval` steps (ΔT; by default 100, in trainings of less than 1000 steps a tenth of
    them) and before the share `until` of training, the weakest `fraction` of the live edges goes
    and as many come. `anneal`: the fraction falls to 0 as a `cosine`, or stays."""

    interval: PositiveInt | None = None
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    anneal: Literal["cosine", "constant"] = "cosine"
    until: Annotated[float, Field(gt=0, le=1)] = 0.75


class Regrowing(EdgeRule):
    """k random edges at first; then drop the weakest, grow where `growth` is highest.

    A grown edge begins with weight 0 and no momentum; one that is dropped and grown in the same
    step keeps both.
    """

    scheduled = True
    needs_own_weights = True
    Options = RegrowOptions

    def __init__(
        self, budget: int, options: dict[str, Any] | None = None, *, limit: float | None = None
    ) -> None:
        super().__init__(budget, options, limit=limit)
        if limit is not None:
            raise BudgetError(
                f"rule {type(self).__name__} moves a number of edges and cannot keep a budget of "
                f"cost, got {limit:g}; give it a number of edges"
            )

    def begin(self) -> None:
        """Raises WiringError where the chosen interval leaves no step at which edges move."""
        steps, interval = self.clock.steps, self.options.interval
        if steps is not None and interval is not None and interval >= self.options.until * steps:
            raise WiringError(
                f"rule {type(self).__name__} moves edges every {interval} steps before step "
                f"{self.options.until * steps:g} of {steps}: never; set a smaller interval"
            )

    def moves_at(self, step: int) -> bool:
        """Whether edges move after `step` optimiser steps are done."""
        steps = self.clock.steps
        if steps is None or not 0 < step < self.options.until * steps:
            return False
        interval = self.options.interval or min(INTERVAL, max(1, steps // FEWEST_UPDATES))
        return step % interval == 0

    def fraction(self) -> float:
        """The share of live edges that moves now."""
        options, steps = self.options, self.clock.steps
        if options.anneal == "constant" or steps is None:
            return float(options.fraction)
        done = self.clock.step / (options.until * steps)
        return float(options.fraction * 0.5 * (1 + math.cos(math.pi * done)))

    def drops_of(self, live: Tensor) -> int:
        """How many of the live edges go now."""
        return int(self.fraction() * int(live.sum()))

    @abstractmethod
    def growth(self, edges: ScopeEdges) -> Tensor:
        """What says which edges come: the highest of [E] that do not live."""

    def moves(self, live: Tensor, allowed: Tensor) -> Tensor:
        return live

    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        if live is not None:
            return live
        return self.strongest(torch.rand(scores.shape, device=scores.device), allowed)

    def update(self, edges: ScopeEdges) -> Tensor | None:
        if not self.moves_at(self.clock.step):
            return None
        moved = self.drops_of(edges.live)
        return self.moved(edges, moved, moved)

    def moved(self, edges: ScopeEdges, drop: int, grow: int) -> Tensor:
        """The live edges without the `drop` weakest and with `grow` others."""
        live = edges.live
        chosen = self.strongest(edges.scores(), live, int(live.sum()) - drop)
        if grow:
            chosen |= self.strongest(self.growth(edges), edges.allowed & ~chosen, grow)
        born = chosen & ~live
        edges.put_weights(edges.weights().masked_fill(born, 0))
        edges.put_momenta(edges.momenta().masked_fill(born, 0))
        return chosen
