"""The shape of a neural graph as plain data: node groups, edge bundles, wiring scopes.

A node is one channel. Nodes that share resolution and function form a *group*; edges that enter a
group form *bundles*; bundles that compete for one edge budget form a *scope* (Wortsman 2019: one
scope per stage). A graph is static (edges run forwards) or, with `dynamics`, runs over time and
may have cycles. Nothing here is a tensor, and everything goes to JSON and back.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from wiring.config import Component, Config
from wiring.errors import BudgetError, TopologyError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
Step = Literal["norm", "bias", "act", "tanh", "depthwise", "maxpool", "avgpool", "pool", "dropout"]
CostUnit = Literal["multiplications", "energy", "weight_bits"]


class Window(Config):
    """A square pooling window of `size` pixels a side."""

    size: PositiveInt = 2
    stride: PositiveInt = 2
    padding: NonNegativeInt = 0


class NodeGroup(Config):
    """`size` nodes that apply `steps` to the sum of what they receive.

    `norm` and `act` (ReLU) or `tanh`; `bias` adds a constant per node; `depthwise` is a
    single-channel 3x3 convolution with `stride`; `maxpool` and `avgpool` slide `window`; `pool`
    averages over the image; `dropout` zeroes values with probability `dropout` in training. A
    step may come twice. A group without steps hands its sum on.

    In a dynamic graph `receive` are steps that make a node's next state (or its change) of the
    sum, and `steps` what makes a message of a state.

    `stage` is where pictures place it; `labels` names the nodes of a graph that came from outside.
    """

    name: Name
    size: PositiveInt
    steps: tuple[Step, ...] = ()
    receive: tuple[Step, ...] = ()
    norm: Literal["batch", "instance"] = "batch"
    stride: PositiveInt = 1
    window: Window = Window()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    stage: NonNegativeInt = 0
    labels: tuple[str, ...] | None = None


class Bundle(Config):
    """All edges from the groups `sources` into the group `destination`.

    Its weight is [D, S, kh, kw] with S the sources' sizes in order. `edges` lists the usable
    (destination, source) pairs; None means all of them. `op` replaces the network's operator
    here, as in a classifier that stays in full precision.
    """

    name: Name
    sources: tuple[Name, ...] = Field(min_length=1)
    destination: Name
    kernel: tuple[PositiveInt, PositiveInt] = (1, 1)
    stride: PositiveInt = 1
    padding: NonNegativeInt = 0
    edges: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] | None = None
    op: Component | None = None

    @model_validator(mode="after")
    def _sort_edges(self) -> Self:
        if self.edges is not None:
            ordered = tuple(sorted(self.edges))
            if len(set(ordered)) != len(ordered):
                raise TopologyError(f"bundle '{self.name}' lists an edge twice")
            object.__setattr__(self, "edges", ordered)
        return self


class Limit(Config):
    """A budget in units of cost: at most `amount` of `unit` for all live edges together."""

    unit: CostUnit
    amount: PositiveFloat


class Scope(Config):
    """Bundles that share one budget of live edges; None keeps every usable edge.

    With a `limit` edges compete for a cost instead of a number. `fan_in` says over what the first
    weights are scaled: the sources of the whole scope, as in a stage of DNW, or each bundle's own,
    as in a pool over the layers of a network. `unusable` counts entries that compete for the
    budget and never act: DNW's released code keeps such.
    """

    name: Name
    bundles: tuple[Name, ...] = Field(min_length=1)
    budget: int | None = None
    limit: Limit | None = None
    fan_in: Literal["scope", "bundle"] = "scope"
    unusable: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.limit is not None and self.budget is not None:
            raise BudgetError(
                f"scope '{self.name}' has a budget of {self.budget} edges and one of "
                f"{self.limit.amount:g} {self.limit.unit}; it takes one of them"
            )
        return self


class Skip(Config):
    """A fixed identity: destination node i also receives what source node start+i has.

    `carries` is the sum that the source got, or its `value` after its steps. `nodes`, if given,
    lists the source node of every destination node instead. With a `gate` all of it is
    multiplied by the sigmoid of one learned number (Xie 2019); only static graphs have gates.
    """

    carries: Literal["sum", "value"] = "sum"
    gate: bool = False
    source: Name
    destination: Name
    start: NonNegativeInt = 0
    nodes: tuple[NonNegativeInt, ...] | None = None

    def reads(self, size: int) -> tuple[int, ...]:
        """The source node of each of the `size` destination nodes."""
        return tuple(range(self.start, self.start + size)) if self.nodes is None else self.nodes


class Discrete(Config):
    """T steps of S_v(t) = receive_v(Σ message_uv(steps_u(S_u(t−1)))) (Wortsman 2019, section 2).

    By default S(0) is what the stem gives at the input nodes, and 0 elsewhere. With `rows` an
    image is a sequence: S(0) = 0, and at step t the input nodes also receive row t of the image,
    one node per channel and column.
    """

    kind: Literal["discrete"] = "discrete"
    steps: PositiveInt = 5
    feed: Literal["start", "rows"] = "start"


class Continuous(Config):
    """dS_v/dt = receive_v(Σ message_uv(steps_u(S_u(t)))), t from 0 to `time`, by torchdiffeq.

    `solver` is adaptive (held to `rtol`, `atol`) or has fixed steps of `step_size`. `adjoint`
    solves backwards in time for the gradient instead of keeping every state.
    """

    kind: Literal["continuous"] = "continuous"
    solver: Literal["dopri5", "dopri8", "bosh3", "adaptive_heun", "euler", "midpoint", "rk4"] = (
        "dopri5"
    )
    time: PositiveFloat = 1.0
    rtol: PositiveFloat = 1e-3
    atol: PositiveFloat = 1e-3
    step_size: PositiveFloat = 0.2
    adjoint: bool = False


Dynamics = Annotated[Discrete | Continuous, Field(discriminator="kind")]


class Topology(Config):
    """A neural graph. A static one lists `groups` in an order in which every edge runs forwards.

    The first group takes the input, the last one is read out. Raises TopologyError for an edge
    that hangs in the air, or runs backwards in a graph without `dynamics`, and BudgetError for a
    budget outside 1..usable edges.
    """

    groups: tuple[NodeGroup, ...] = Field(min_length=2)
    bundles: tuple[Bundle, ...] = Field(min_length=1)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    skips: tuple[Skip, ...] = ()
    dynamics: Dynamics | None = None

    @property
    def input(self) -> NodeGroup:
        return self.groups[0]

    @property
    def output(self) -> NodeGroup:
        return self.groups[-1]

    def group(self, name: str) -> NodeGroup:
        """The group of that name. Raises TopologyError."""
        try:
            return self._groups[name]
        except KeyError:
            raise TopologyError(f"there is no node group '{name}'") from None

    def bundle(self, name: str) -> Bundle:
        """The bundle of that name. Raises TopologyError."""
        try:
            return self._bundles[name]
        except KeyError:
            raise TopologyError(f"there is no bundle '{name}'") from None

    @cached_property
    def _groups(self) -> dict[str, NodeGroup]:
        return {group.name: group for group in self.groups}

    @cached_property
    def _bundles(self) -> dict[str, Bundle]:
        return {bundle.name: bundle for bundle in self.bundles}

    def weight_shape(self, bundle: Bundle) -> tuple[int, int, int, int]:
        """(D, S, kh, kw)."""
        sources = sum(self.group(name).size for name in bundle.sources)
        return (self.group(bundle.destination).size, sources, *bundle.kernel)

    def usable_edges(self, scope: Scope) -> int:
        """How many edges the scope may choose from; each position of a kernel is an edge."""
        return sum(self._usable(self.bundle(name)) for name in scope.bundles)

    def live_edges(self, scope: Scope) -> int:
        """The scope's budget, or all usable edges where it has none."""
        return self.usable_edges(scope) if scope.budget is None else scope.budget

    def fan_in(self, scope: Scope, bundle: Bundle) -> int:
        """Source nodes times the kernel, which scales a bundle's first weights.

        Of a scope that shares one scale: its distinct source nodes and its largest kernel.
        """
        bundles = [bundle]
        if scope.fan_in == "scope":
            bundles = [self.bundle(name) for name in scope.bundles]
        sources = {name for bundle in bundles for name in bundle.sources}
        window = max(math.prod(bundle.kernel) for bundle in bundles)
        return window * sum(self.group(name).size for name in sources)

    def _usable(self, bundle: Bundle) -> int:
        d, s, kh, kw = self.weight_shape(bundle)
        return (d * s if bundle.edges is None else len(bundle.edges)) * kh * kw

    def digest(self) -> str:
        """Hex SHA-256 of the graph; the order in which edges are listed does not matter."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind, names in (
            ("node group", [g.name for g in self.groups]),
            ("bundle", [b.name for b in self.bundles]),
            ("scope", [s.name for s in self.scopes]),
            ("scoped bundle", [b for s in self.scopes for b in s.bundles]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise TopologyError(f"{kind} '{min(twice)}' appears twice")
        unscoped = set(self._bundles) - {b for s in self.scopes for b in s.bundles}
        if unscoped:
            raise TopologyError(f"bundle '{min(unscoped)}' belongs to no scope")
        order = {group.name: position for position, group in enumerate(self.groups)}
        for bundle in self.bundles:
            for source in bundle.sources:
                self._check_forward(f"bundle '{bundle.name}'", source, bundle.destination, order)
            self._check_edges(bundle)
        for skip in self.skips:
            if skip.gate and self.dynamics is not None:
                raise TopologyError(
                    f"the skip from '{skip.source}' into '{skip.destination}' has a gate; "
                    "only skips of a static graph have one"
                )
            self._check_forward("a skip", skip.source, skip.destination, order)
            size = self.group(skip.destination).size
            if len(skip.reads(size)) != size:
                raise TopologyError(
                    f"a skip into '{skip.destination}' needs {size} nodes of '{skip.source}', "
                    f"got {len(skip.reads(size))}"
                )
            end = max(skip.reads(size)) + 1
            if end > self.group(skip.source).size:
                raise TopologyError(
                    f"a skip reads nodes up to {end} of '{skip.source}', "
                    f"which has {self.group(skip.source).size}"
                )
        for group in self.groups:
            if group.receive and self.dynamics is None:
                raise TopologyError(
                    f"node group '{group.name}' has steps to receive with; "
                    "only nodes of a dynamic graph have a state"
                )
            if group.labels is not None and len(group.labels) != group.size:
                raise TopologyError(
                    f"node group '{group.name}' has {group.size} nodes, "
                    f"got {len(group.labels)} labels"
                )
        if self.dynamics is not None:
            self._check_resolution()
        for scope in self.scopes:
            usable = self.usable_edges(scope)
            if scope.budget is not None and not 1 <= scope.budget <= usable:
                raise BudgetError(
                    f"live edges of scope '{scope.name}' must be in 1..{usable}, got {scope.budget}"
                )
        return self

    def _check_resolution(self) -> None:
        """Nodes that run over time share one resolution, or cycles would shrink the image."""
        for group in self.groups:
            pools = {"maxpool", "avgpool", "pool"} & {*group.steps, *group.receive}
            if pools or group.stride != 1:
                reason = f"step '{min(pools)}'" if pools else f"a stride of {group.stride}"
                raise TopologyError(
                    f"node group '{group.name}' has {reason}; "
                    "all nodes of a dynamic graph share one resolution"
                )
            solved = isinstance(self.dynamics, Continuous)
            if solved and "dropout" in (*group.steps, *group.receive):
                raise TopologyError(
                    f"node group '{group.name}' has step 'dropout'; "
                    "a differential equation must not change while it is solved"
                )
        for bundle in self.bundles:
            kept = all(2 * bundle.padding == size - 1 for size in bundle.kernel)
            if bundle.stride != 1 or not kept:
                raise TopologyError(
                    f"bundle '{bundle.name}' has kernel {list(bundle.kernel)}, stride "
                    f"{bundle.stride} and padding {bundle.padding}; "
                    "all nodes of a dynamic graph share one resolution"
                )

    def _check_forward(
        self, what: str, source: str, destination: str, order: dict[str, int]
    ) -> None:
        backwards = order[self.group(source).name] >= order[self.group(destination).name]
        if backwards and self.dynamics is None:
            raise TopologyError(
                f"{what} runs backwards: from '{source}' into '{destination}'; "
                "a static graph has no cycle"
            )

    def _check_edges(self, bundle: Bundle) -> None:
        d, s, *_ = self.weight_shape(bundle)
        for destination, source in bundle.edges or ():
            if destination >= d or source >= s:
                raise TopologyError(
                    f"bundle '{bundle.name}' has a dangling edge ({destination}, {source}); "
                    f"its nodes are {d} destinations and {s} sources"
                )
