"""The shape of a static neural graph as plain data: node groups, edge bundles, wiring scopes.

A node is one channel. Nodes that share resolution and function form a *group*; all edges that
enter a group form a *bundle*; bundles that compete for one edge budget form a *scope* (Wortsman
2019: one scope per stage). Nothing here is a tensor, and everything goes to JSON and back.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, model_validator

from wiring.config import Component, Config
from wiring.errors import BudgetError, TopologyError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
Step = Literal["norm", "act", "depthwise", "pool"]


class NodeGroup(Config):
    """`size` nodes that apply `steps` to the sum of what they receive.

    `depthwise` is a single-channel 3x3 convolution with `stride`; `pool` averages over the image.
    A group without steps hands its sum on. `stage` is where pictures place it; `labels` names
    the nodes of a graph that came from outside.
    """

    name: Name
    size: PositiveInt
    steps: tuple[Step, ...] = ()
    norm: Literal["batch", "instance"] = "batch"
    stride: PositiveInt = 1
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


class Scope(Config):
    """Bundles that share one budget of live edges; None keeps every usable edge."""

    name: Name
    bundles: tuple[Name, ...] = Field(min_length=1)
    budget: int | None = None


class Skip(Config):
    """A fixed identity: destination node i also receives the sum that source node start+i got.

    `nodes`, if given, lists the source node of every destination node instead.
    """

    source: Name
    destination: Name
    start: NonNegativeInt = 0
    nodes: tuple[NonNegativeInt, ...] | None = None

    def reads(self, size: int) -> tuple[int, ...]:
        """The source node of each of the `size` destination nodes."""
        return tuple(range(self.start, self.start + size)) if self.nodes is None else self.nodes


class Topology(Config):
    """A static neural graph: `groups` in an order in which every edge runs forwards.

    Raises TopologyError for an edge that runs backwards or hangs in the air, and BudgetError
    for a budget outside 1..usable edges.
    """

    groups: tuple[NodeGroup, ...] = Field(min_length=2)
    bundles: tuple[Bundle, ...] = Field(min_length=1)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    skips: tuple[Skip, ...] = ()

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

    def fan_in(self, scope: Scope) -> int:
        """Distinct source nodes of the scope times the kernel: one scale for all its weights."""
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
            if group.labels is not None and len(group.labels) != group.size:
                raise TopologyError(
                    f"node group '{group.name}' has {group.size} nodes, "
                    f"got {len(group.labels)} labels"
                )
        for scope in self.scopes:
            usable = self.usable_edges(scope)
            if scope.budget is not None and not 1 <= scope.budget <= usable:
                raise BudgetError(
                    f"live edges of scope '{scope.name}' must be in 1..{usable}, got {scope.budget}"
                )
        return self

    def _check_forward(
        self, what: str, source: str, destination: str, order: dict[str, int]
    ) -> None:
        if order[self.group(source).name] >= order[self.group(destination).name]:
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
