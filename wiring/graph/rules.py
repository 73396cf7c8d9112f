"""The plug-in protocol of edge rules: which edges live, and when that changes.

A rule sees its scope's edges flat ([E], all bundles one after the other), before and after every
optimiser step, and knows by its clock where training stands.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wiring.config import Config, NoOptions, parse
from wiring.errors import BudgetError
from wiring.graph.edges import EdgeOp
from wiring.graph.phases import Clock, Phase
from wiring.kernels.select_edges import select_edges
from wiring.registry import Registry


class ScopeEdges:
    """The edges of one scope as a rule sees them: flat tensors [E] over all its bundles.

    What it returns are copies; `put_…` writes back.
    """

    def __init__(
        self,
        ops: Sequence[EdgeOp],
        live: Tensor,
        allowed: Tensor,
        prices: Tensor | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.live = live
        self.allowed = allowed
        self.prices = prices
        self._ops = ops
        self._optimizer = optimizer

    def scores(self) -> Tensor:
        """What operators say of their edges. Where edges compete for a cost, operators do too:
        then each bundle's scores are multiples of its mean score."""
        scores = torch.empty(self.live.shape, device=self.live.device, dtype=self._dtype())
        for op, part in zip(self._ops, self._split(scores), strict=True):
            op.scores(out=part)
            if self.prices is not None:
                part.div_(part.mean().clamp(min=1e-12))
        return scores

    def weights(self) -> Tensor:
        return self._join([op.weight.detach() for op in self._ops])

    def put_weights(self, values: Tensor) -> None:
        for op, part in zip(self._ops, self._split(values), strict=True):
            op.weight.data.copy_(part)

    def gradients(self) -> Tensor:
        """0 where there is none."""
        return self._join([_or_zero(op.weight.grad, op.weight) for op in self._ops])

    def put_gradients(self, values: Tensor) -> None:
        for op, part in zip(self._ops, self._split(values), strict=True):
            if op.weight.grad is None:
                op.weight.grad = part.clone()
            else:
                op.weight.grad.copy_(part)

    def momenta(self) -> Tensor:
        """The optimiser's momentum, 0 where it has none."""
        return self._join([_or_zero(self._momentum(op), op.weight) for op in self._ops])

    def put_momenta(self, values: Tensor) -> None:
        for op, part in zip(self._ops, self._split(values), strict=True):
            momentum = self._momentum(op)
            if momentum is not None:
                momentum.copy_(part)

    def bundles(self, flat: Tensor) -> list[Tensor]:
        """Views [D, S, kh, kw] of a flat tensor, one per bundle."""
        return self._split(flat)

    @property
    def lr(self) -> float:
        """The optimiser's present rate, for proximal steps; 0 where there is no optimiser."""
        return learning_rate(self._optimizer)

    def _momentum(self, op: EdgeOp) -> Tensor | None:
        state = {} if self._optimizer is None else self._optimizer.state.get(op.weight, {})
        found: Tensor | None = state.get("momentum_buffer", state.get("exp_avg"))
        return found

    def _split(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [op.shape.numel() for op in self._ops])
        return [part.view(op.shape) for part, op in zip(parts, self._ops, strict=True)]

    def _dtype(self) -> torch.dtype:
        """That of the operators' parameters, where they have any."""
        found = (p.dtype for op in self._ops for p in op.parameters())
        return next(found, torch.get_default_dtype())

    @staticmethod
    def _join(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.flatten() for part in parts])


def learning_rate(optimizer: torch.optim.Optimizer | None) -> float:
    """The rate of an optimiser's first group of parameters; 0 of none."""
    return float(optimizer.param_groups[0]["lr"]) if optimizer is not None else 0.0


def _or_zero(tensor: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tensor is None else tensor


class EdgeRule(nn.Module, ABC):
    """Which edges of one scope live. `budget` is k; a scope is flat, its edges indexed 0..E-1.

    Most rules are a `select`. Those that act at some steps only, or on gradients, override
    `update` and `before_step`; those that train a network first have `phases`. State belongs in
    buffers of no dimension or of shape [E], which checkpoints and `compact` then keep. `clock` is
    brought up to date before every call.
    """

    paper: ClassVar[str] = ""
    use: ClassVar[str] = ""
    learns_dead_edges: ClassVar[bool] = False
    # The live edges stay those of the beginning: `select` is not called after steps.
    fixed: ClassVar[bool] = False
    # Needs to know how long training lasts: `attach(..., steps=...)`.
    scheduled: ClassVar[bool] = False
    # Ends with exactly `budget` live edges; rules with thresholds of their own do not.
    keeps_budget: bool = True
    # In training other edges act than in evaluation: `act` draws them.
    drops: ClassVar[bool] = False
    # Ranks edges by cost: the network tells it what an edge of each bundle costs.
    needs_prices: ClassVar[bool] = False
    # Sets single weights or asks for their gradients: not for edges that share parameters.
    needs_own_weights: ClassVar[bool] = False
    # Dropout is weakened as edges vanish, by √(live/usable) of the bundles behind it (Han 2015).
    scales_dropout: ClassVar[bool] = False
    Options: ClassVar[type[Config]] = NoOptions
    prices: Tensor | None

    def __init__(
        self,
        budget: int,
        options: dict[str, Any] | None = None,
        *,
        limit: float | None = None,
    ) -> None:
        super().__init__()
        if budget < 1:
            raise BudgetError(f"live edges must be at least 1, got {budget}")
        self.budget = budget
        self.limit = limit
        self.options = self.parse_options(options or {})
        self.clock = Clock()
        self.register_buffer("prices", None, persistent=False)

    @classmethod
    def parse_options(cls, options: dict[str, Any]) -> Any:
        """Checked options of this rule. Raises ConfigError."""
        return parse(cls.Options, options, where=f"rule {cls.__module__.rpartition('.')[2]}")

    def allocate(self, edges: int) -> None:
        """Called once by the scope that gets the rule: make the buffers of shape [edges]."""

    def begin(self) -> None:
        """Called when training is set up, with the clock set. Raises WiringError where the rule
        cannot do its work in so many steps; by default never."""

    def phases(self) -> tuple[Phase, ...]:
        """The stretches that training with this rule consists of; one by default."""
        return (Phase("train"),)

    @abstractmethod
    def select(self, scores: Tensor, allowed: Tensor, live: Tensor | None) -> Tensor:
        """The live edges, called at construction (live None) and, unless `fixed`, after every
        optimiser step.

        scores float [E]; allowed bool [E], the usable edges; live bool [E], the edges that
        lived until now. Returns bool [E] within `allowed`. Ties go to the lower index.
        """

    def strongest(
        self, scores: Tensor, allowed: Tensor, budget: int | None = None, *, per_cost: bool = True
    ) -> Tensor:
        """The `budget` allowed edges of the highest scores, bool [E]; by default the rule's own.

        Where the scope has a limit of cost instead, edges are taken in the order of their score
        (`per_cost`: divided by their price) until the next one would pass it.
        """
        chosen: Tensor
        if self.limit is None or budget is not None:
            chosen = select_edges(scores, allowed, self.budget if budget is None else budget)
        else:
            assert self.prices is not None, "the network sets prices before the first selection"
            chosen = select_within(scores, self.prices, allowed, self.limit, per_cost=per_cost)
        return chosen

    def learn(self, live: Tensor, allowed: Tensor) -> Tensor:
        """The edges that receive the weight gradient, bool, a superset of `live`."""
        return allowed if self.learns_dead_edges else live

    def moves(self, live: Tensor, allowed: Tensor) -> Tensor:
        """The edges whose weights training moves, bool: those that learn, unless a rule takes the
        gradient of others in `before_step` to look at it only."""
        return self.learn(live, allowed)

    def before_step(self, edges: ScopeEdges) -> None:
        """Called before an optimiser step: gradients may be read and changed; by default left."""

    def update(self, edges: ScopeEdges) -> Tensor | None:
        """Called after an optimiser step; the live edges from now on, None for no change."""
        return None if self.fixed else self.select(edges.scores(), edges.allowed, edges.live)

    def act(self, scores: Tensor, live: Tensor, allowed: Tensor) -> Tensor:
        """For rules that drop: the edges that act in the next training step, bool [E]."""
        return live

    @classmethod
    def balance(cls, rules: Sequence[EdgeRule], edges: Sequence[ScopeEdges]) -> None:
        """Called before `update` with every scope of the network, for rules that move edges
        between scopes. By default nothing."""


def select_within(
    scores: Tensor, prices: Tensor, allowed: Tensor, limit: float, *, per_cost: bool = True
) -> Tensor:
    """The allowed edges of the highest score per price whose prices add up to `limit` at most.

    scores, prices float [E]; allowed bool [E]; returns bool [E]. Raises BudgetError where not one
    edge fits.
    """
    # What costs nothing in this unit comes first, the strongest of it leading.
    wanted = scores / prices.clamp(min=1e-12) if per_cost else scores
    order = torch.where(allowed, wanted, -torch.inf).sort(descending=True, stable=True).indices
    order = order[: int(allowed.sum())]
    within = prices[order].double().cumsum(0) <= limit
    if not len(order) or not bool(within[0]):
        cheapest = float(prices[allowed].min()) if len(order) else math.nan
        raise BudgetError(f"a budget of {limit:g} buys no edge; the cheapest costs {cheapest:g}")
    live = torch.zeros_like(allowed)
    live[order[within]] = True
    return live


EDGE_RULES: Registry[EdgeRule] = Registry(
    "edge rule", package="wiring.methods", group="wiring.edge_rules"
)
