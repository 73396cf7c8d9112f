"""What every neural graph has in PyTorch: operators, node functions, scopes with their rules.

The subclasses say how values run through it: `StaticGraph` in one pass, `DiscreteGraph` and
`ContinuousGraph` over time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from wiring.config import Component
from wiring.errors import BudgetError, TopologyError, WiringError
from wiring.graph.edges import EDGE_OPS, EdgeOp
from wiring.graph.nodes import Gate, NodeOp
from wiring.graph.phases import Clock, Phase, clock_at, phase_ends
from wiring.graph.rules import EDGE_RULES, ScopeEdges, learning_rate
from wiring.graph.scope import ScopeWiring
from wiring.graph.staged import staged
from wiring.graph.tied import TiedOp
from wiring.graph.topology import NodeGroup, Topology


class NeuralGraph(nn.Module, ABC):
    """A topology with an operator on its edges and a rule on its scopes.

    The wiring changes only in `after_step`, which `attach` calls after every optimiser step: a
    forward pass is a pure function of parameters and buffers.
    """

    def __init__(self, topology: Topology, op: Component, rule: Component) -> None:
        super().__init__()
        self.topology = topology
        self.ops = nn.ModuleDict()
        scope_of = {name: scope for scope in topology.scopes for name in scope.bundles}
        for bundle in topology.bundles:
            destinations, sources, *_ = topology.weight_shape(bundle)
            component = bundle.op or op
            self.ops[bundle.name] = EDGE_OPS.get(component.name)(
                sources,
                destinations,
                kernel=bundle.kernel,
                stride=bundle.stride,
                padding=bundle.padding,
                fan_in=topology.fan_in(scope_of[bundle.name], bundle),
                options=component.options,
            )
        self.nodes = nn.ModuleDict()
        self._make_nodes()
        gated = [place for place, skip in enumerate(topology.skips) if skip.gate]
        self.gates = nn.ModuleDict({str(place): Gate() for place in gated})
        make_rule = EDGE_RULES.get(rule.name)
        self.scopes = nn.ModuleDict()
        for scope in topology.scopes:
            limit = None if scope.limit is None else scope.limit.amount
            chosen = make_rule(topology.live_edges(scope), rule.options, limit=limit)
            self.scopes[scope.name] = ScopeWiring(topology, scope, chosen)
        self._tie()
        self.staged = staged(self.op(bundle.name) for bundle in topology.bundles)
        self.clock = Clock()
        self._settled = False
        self._select_first([n for n, w in self.wirings() if w.rule.limit is None])

    def _make_nodes(self) -> None:
        """Node functions, in the order that the operators that read them want."""
        for group in self.topology.groups:
            self.nodes[group.name] = NodeOp(group, self._arranged(group))

    def _arranged(self, group: NodeGroup) -> tuple[str, ...]:
        """A group's steps before its edges, with a norm where what it receives asks for one."""
        steps = group.steps
        for bundle in self.topology.bundles:
            if group.name in bundle.sources:
                reader = self.op(bundle.name)
                steps = reader.arrange(steps, reader.options)
        writers = [b.name for b in self.topology.bundles if b.destination == group.name]
        # A norm behind the activation comes too late: sums of distances are all negative.
        bends = [place for place, step in enumerate(steps) if step in ("act", "tanh")]
        first = steps[: bends[0]] if bends else steps
        if "norm" not in (*group.receive, *first) and any(
            self.op(writer).needs_norm for writer in writers
        ):
            steps = ("norm", *steps)
        return steps

    def _tie(self) -> None:
        """Tell operators whose edges share parameters where all of them live for good. Raises
        WiringError for rules that set single weights of such edges."""
        for name, wiring in self.wirings():
            rule, edges = wiring.rule, len(wiring.live)
            ops = [op for bundle in wiring.shapes if (op := self.op(bundle)).tied]
            if ops and rule.needs_own_weights:
                raise WiringError(
                    f"rule {type(rule).__name__} sets single weights or reads their gradients; the "
                    f"edges of {type(ops[0]).__name__} in scope '{name}' have none of their own"
                )
            whole = rule.limit is None and rule.keeps_budget and rule.budget >= edges
            for op in (op for op in ops if isinstance(op, TiedOp)):
                op.always_whole = whole and not rule.drops and wiring.unusable is None

    @property
    def passes(self) -> int:
        """How often one forward pass runs every edge; more than once in graphs over time."""
        return 1

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x [N, inputs, H, W]; returns the output group's nodes, [N, outputs, H', W']."""

    def check_input(self, x: Tensor) -> None:
        """Raises TopologyError unless x is [N, inputs, H, W]."""
        size = self.topology.input.size
        if x.dim() != 4 or x.shape[1] != size:
            raise TopologyError(f"the graph takes [N, {size}, H, W], got {list(x.shape)}")

    def op(self, bundle: str) -> EdgeOp:
        """The operator of a bundle."""
        module = self.ops[bundle]
        assert isinstance(module, EdgeOp)
        return module

    def scope(self, name: str) -> ScopeWiring:
        """The wiring of a scope."""
        module = self.scopes[name]
        assert isinstance(module, ScopeWiring)
        return module

    def wirings(self) -> list[tuple[str, ScopeWiring]]:
        """(name, wiring) of every scope, in the topology's order."""
        return [(scope.name, self.scope(scope.name)) for scope in self.topology.scopes]

    def edges(
        self, wiring: ScopeWiring, optimizer: torch.optim.Optimizer | None = None
    ) -> ScopeEdges:
        """A scope's edges as its rule sees them."""
        ops = [self.op(name) for name in wiring.shapes]
        return ScopeEdges(ops, wiring.live, wiring.allowed, wiring.rule.prices, optimizer)

    def live(self) -> dict[str, Tensor]:
        """Edges that live in evaluation by bundle, bool [D, S, kh, kw]."""
        return {n: m for _, scope in self.wirings() for n, m in scope.split(scope.live).items()}

    def learn(self) -> dict[str, Tensor]:
        """Edges that learn by bundle, bool [D, S, kh, kw]; in later stages of the operators those
        that live, for no other can live any more."""
        return {n: m for _, w in self.wirings() for n, m in w.split(self._learns(w)).items()}

    def _learns(self, wiring: ScopeWiring) -> Tensor:
        return wiring.live if self.stage > 0 else wiring.learn()

    def _moves(self) -> dict[str, Tensor]:
        """Edges whose weights training moves by bundle, bool [D, S, kh, kw]."""
        moves = {n: w.rule.moves(w.live, w.allowed) for n, w in self.wirings()}
        if self.stage > 0:
            moves = {n: w.live for n, w in self.wirings()}
        return {
            n: m for scope, flat in moves.items() for n, m in self.scope(scope).split(flat).items()
        }

    def masks(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(edges that act now, edges that learn) by bundle, both bool [D, S, kh, kw]."""
        dropping = self.training and not self._settled
        masks = {}
        for _, scope in self.wirings():
            live = scope.acting if dropping and scope.rule.drops else scope.live
            acting, learn = scope.split(live), scope.split(self._learns(scope))
            masks.update({name: (acting[name], learn[name]) for name in acting})
        return masks

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Inside, the edges of evaluation act in training mode too: for measuring moments."""
        self._settled = True
        try:
            yield
        finally:
            self._settled = False

    def phases(self) -> tuple[Phase, ...]:
        """The stretches of training: those of the rule, then the later stages of the operators.

        The rule's share a training in proportion to the operators' first stage.
        """
        chosen = self._rule_phases()
        if not self.staged:
            return chosen
        first, *later = self.staged[0].phases()
        scale = first.share / sum(phase.share for phase in chosen)
        return (*(replace(phase, share=scale * phase.share) for phase in chosen), *later)

    def _rule_phases(self) -> tuple[Phase, ...]:
        return self.wirings()[0][1].rule.phases()

    @property
    def stage(self) -> int:
        """The stage of the operators, 0 where they have but one."""
        return max((op.stage for op in self.staged), default=0)

    @property
    def needs_data(self) -> bool:
        """Whether an operator looks at data when it enters a stage."""
        return any(op.needs_data for op in self.staged)

    def set_prices(self, prices: Mapping[str, float]) -> None:
        """What a live edge of each bundle costs, in the unit of the scopes' limits or, for rules
        that rank by energy, in picojoule. Chooses the first wiring of scopes with a limit."""
        priced = [n for n, w in self.wirings() if w.rule.limit is not None or w.rule.needs_prices]
        for name in priced:
            self.scope(name).set_prices(prices)
        limited = [name for name in priced if self.scope(name).rule.limit is not None]
        self._select_first(limited)
        for name in limited:
            self._check_limit(name)

    def _check_limit(self, name: str) -> None:
        """Raises BudgetError where a scope's live edges cost more than its limit."""
        wiring = self.scope(name)
        rule = wiring.rule
        if rule.limit is None or rule.prices is None:
            return
        if self.clock.phase < len(self._rule_phases()) - 1:
            return  # rules that train a larger network first keep to it in the end
        spent = float(rule.prices.double()[wiring.live].sum())
        if spent > rule.limit * (1 + 1e-6):
            raise BudgetError(
                f"the live edges of scope '{name}' cost {spent:g}, its limit is {rule.limit:g}: "
                f"rule {type(rule).__name__} keeps edges by their number, not by their cost"
            )

    @property
    def wants_prices(self) -> bool:
        """Whether `set_prices` must be called before the graph is used."""
        return any(w.rule.limit is not None or w.rule.needs_prices for _, w in self.wirings())

    def select_anew(self) -> None:
        """Choose the first wiring again, for weights that came from elsewhere."""
        self._select_first([name for name, _ in self.wirings()])

    @torch.no_grad()
    def _select_first(self, scopes: list[str]) -> None:
        for name in scopes:
            wiring = self.scope(name)
            edges = self.edges(wiring)
            wiring.live.copy_(wiring.select_first(edges))
            self._draw(wiring, edges)
        self._scale_dropout()

    @staticmethod
    def _draw(wiring: ScopeWiring, edges: ScopeEdges) -> None:
        if wiring.rule.drops:
            acting = wiring.rule.act(edges.scores(), wiring.live, wiring.allowed)
            wiring.acting.copy_(acting)

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """What rules and operators do to gradients before an optimiser step."""
        for _, wiring in self.wirings():
            if wiring.unusable is not None and wiring.unusable.grad is None:
                wiring.unusable.grad = torch.zeros_like(wiring.unusable)  # decays all the same
            wiring.rule.before_step(self.edges(wiring, optimizer))
        for name, moves in self._moves().items():
            self.op(name).scale_gradient(moves)

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Project the weights, then choose the live edges; call after every optimiser step.

        Operators enter their later stages in `advance`, and from then on no edge comes or goes.
        """
        live, moves, lr = self.live(), self._moves(), learning_rate(optimizer)
        for bundle in self.topology.bundles:
            op = self.op(bundle.name)
            if any(parameter.requires_grad for parameter in op.parameters()):  # not frozen
                op.after_step(live[bundle.name], moves[bundle.name], lr)
        self._set_clock(self.clock.step + 1, self.clock.steps)
        if self.stage > 0:
            for _, wiring in self.wirings():
                if wiring.rule.drops:
                    wiring.acting.copy_(wiring.live)
            return
        names, wirings = zip(*self.wirings(), strict=True)
        edges = [self.edges(wiring, optimizer) for wiring in wirings]
        type(wirings[0].rule).balance([wiring.rule for wiring in wirings], edges)
        for name, wiring, seen in zip(names, wirings, edges, strict=True):
            chosen = wiring.update(seen)
            if chosen is not None:
                wiring.live.copy_(chosen)
                self._check_limit(name)
            self._draw(wiring, seen)
        self._scale_dropout()

    def _scale_dropout(self) -> None:
        """Han 2015, eq. 3: D_r = D_0 √(C_r / C_0), C the edges of the bundles behind."""
        if not any(wiring.rule.scales_dropout for _, wiring in self.wirings()):
            return
        live = self.live()
        for group in self.topology.groups:
            readers = [b.name for b in self.topology.bundles if group.name in b.sources]
            usable = sum(live[name].numel() for name in readers)
            share = sum(int(live[name].sum()) for name in readers) / usable if usable else 1.0
            for module in self.nodes[group.name].modules():
                if isinstance(module, nn.Dropout):
                    module.p = group.dropout * share**0.5

    def begin(self, steps: int | None) -> None:
        """Say how many optimiser steps training takes. Raises WiringError where a rule must know
        and nobody does."""
        for name, wiring in self.wirings():
            scheduled = f"rule {type(wiring.rule).__name__}" if wiring.rule.scheduled else ""
            if self.staged:
                scheduled = f"operator {type(self.staged[0]).__name__}"
            if scheduled and steps is None:
                raise WiringError(
                    f"{scheduled} of scope '{name}' follows a schedule: "
                    "say attach(..., steps=...), the optimiser steps of the whole training"
                )
        stages = self.staged[0].phases() if self.staged else ()
        if steps is not None and steps < len(stages):
            raise WiringError(
                f"operator {type(self.staged[0]).__name__} trains in {len(stages)} stages, for "
                f"which {steps} optimiser steps are too few"
            )
        self._set_clock(self.clock.step, steps)
        for _, wiring in self.wirings():
            wiring.rule.begin()

    @property
    def due_stage(self) -> int:
        """The stage that operators should be in by the clock."""
        return max(0, self.clock.phase - len(self._rule_phases()) + 1) if self.staged else 0

    def _set_clock(self, step: int, steps: int | None) -> None:
        clock = self.clock = clock_at(step, steps, self.phases())
        last = len(self._rule_phases()) - 1
        if self.staged and steps is not None and clock.phase >= last:
            # For the rule its last phase lasts to the end: it began when the one before did end.
            begin = phase_ends(steps, self.phases())[last - 1] if last else 0
            clock = Clock(step, steps, last, begin, steps)
        for _, wiring in self.wirings():
            wiring.rule.clock = clock

    def get_extra_state(self) -> Tensor:
        """The optimiser steps done, int64: what schedules go by."""
        return torch.tensor(self.clock.step)

    def set_extra_state(self, state: Tensor) -> None:
        self._set_clock(int(state), self.clock.steps)
        self._scale_dropout()
