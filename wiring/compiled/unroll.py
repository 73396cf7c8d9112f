"""A discrete graph as a static one: a copy of its groups for every step, all of the same weights.

What node v receives at step t is copy t of it; so is what it sends at step t+1. The copies of
step 0 hold the state in the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from wiring.compiled.lowering import LAYOUTS, Lowering
from wiring.compiled.tuning import Memory
from wiring.errors import WiringError
from wiring.graph.dynamic import DiscreteGraph, receiver
from wiring.graph.static import StaticGraph
from wiring.graph.topology import Bundle, Discrete, NodeGroup, Scope, Skip, Topology
from wiring.network import Network


class UnrolledGraph(StaticGraph):
    """The copies, for lowering only: operators and node functions are those of `graph`.

    Copy t of group or bundle `name` is `name-t`. A group whose state a skip carries is two:
    `name-t` holds the state, and `name-t-m`, which receives it, makes the messages.
    """

    def __init__(self, graph: DiscreteGraph) -> None:
        nn.Module.__init__(self)
        self.origin = graph
        self._groups: list[NodeGroup] = []
        self._bundles: list[Bundle] = []
        self._skips: list[Skip] = []
        self.ops, self.nodes, self.gates = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        carried = {s.source for s in graph.topology.skips if s.carries == "sum"}
        self._split = {n for n in carried if list(graph.nodes[receiver(n)].children())}
        for step, names in enumerate(self._read_at()):
            for group in graph.topology.groups:
                if group.name in names:
                    self._copy(group, step)
        self.topology = Topology(
            groups=tuple(self._groups),
            bundles=tuple(self._bundles),
            scopes=(Scope(name="all", bundles=tuple(b.name for b in self._bundles)),),
            skips=tuple(self._skips),
        )

    def live(self) -> dict[str, Tensor]:
        live = self.origin.live()
        return {bundle.name: live[_origin(bundle.name)] for bundle in self._bundles}

    def _read_at(self) -> list[set[str]]:
        """The groups whose states of steps 0..T lead to the output; the input's always first."""
        topology = self.origin.topology
        read = [{topology.output.name}]
        for _ in range(self.origin.passes):
            sources = {s.source for s in topology.skips if s.destination in read[0]}
            for bundle in topology.bundles:
                if bundle.destination in read[0]:
                    sources |= set(bundle.sources)
            read.insert(0, sources)
        read[0].add(topology.input.name)
        return read

    def _copy(self, group: NodeGroup, step: int) -> None:
        graph, last = self.origin, self.origin.passes
        topology, name = graph.topology, f"{group.name}-{step}"
        split = group.name in self._split and 0 < step < last
        receive = list(graph.nodes[receiver(group.name)].children()) if step else []
        send = list(graph.nodes[group.name].children()) if step < last else []
        self._add(name, group.size, receive if split else [*receive, *send])
        if split:
            self._add(f"{name}-m", group.size, send)
            self._skips.append(Skip(source=name, destination=f"{name}-m", carries="value"))
        if not step:
            return
        for bundle in topology.bundles:
            if bundle.destination == group.name:
                sources = tuple(self._sender(source, step - 1) for source in bundle.sources)
                copy = f"{bundle.name}-{step}"
                update = {"name": copy, "sources": sources, "destination": name}
                self._bundles.append(bundle.model_copy(update=update))
                self.ops[copy] = graph.op(bundle.name)
        for skip in topology.skips:
            if skip.destination == group.name:
                # Of a sender the sum is the state, be it split or without receiving steps.
                update = {"source": self._sender(skip.source, step - 1), "destination": name}
                self._skips.append(skip.model_copy(update=update))

    def _sender(self, group: str, step: int) -> str:
        return f"{group}-{step}-m" if group in self._split and step else f"{group}-{step}"

    def _add(self, name: str, size: int, modules: list[nn.Module]) -> None:
        self._groups.append(NodeGroup(name=name, size=size))
        self.nodes[name] = nn.Sequential(*modules)


def _origin(bundle: str) -> str:
    return bundle.rpartition("-")[0]


class UnrolledLowering(Lowering):
    """Lowers a network with a discrete graph, step after step."""

    def __init__(
        self,
        network: Network,
        example: Tensor,
        layout: str,
        memory: Memory,
        pinned: Mapping[str, str],
    ) -> None:
        graph = network.graph
        assert isinstance(graph, DiscreteGraph)
        self.dynamics: Discrete = graph.dynamics
        unrolled = UnrolledGraph(graph)
        copies = {
            bundle.name: pinned[_origin(bundle.name)]
            for bundle in unrolled.topology.bundles
            if _origin(bundle.name) in pinned
        }
        super().__init__(_with_graph(network, unrolled), example, layout, memory, copies)
        self.fed = graph.topology.input

    def _stem(self, now: list[nn.Module], shared: bool, exact: bool) -> tuple[int, bool]:
        """The stem; where rows are fed, the state in the beginning is 0."""
        if self.dynamics.feed == "start":
            return super()._stem(now, shared, exact)
        return self._zeros(self.fed.size), True

    def _begin(self, group: NodeGroup) -> tuple[int, bool]:
        """A row of the image, or the zeros that a state begins with."""
        name, _, step = group.name.rpartition("-")
        if step == "0":
            return self._zeros(group.size), True
        if self.dynamics.feed == "rows" and name == self.fed.name:
            return self.builder.add("row", partial(_row, int(step) - 1), 0), True
        return super()._begin(group)

    def _zeros(self, size: int) -> int:
        rows = self.dynamics.feed == "rows"
        like = 0 if rows else self.groups[self.topology.input.name].total
        make = partial(_zeros, size, LAYOUTS[self.layout], rows)
        return self.builder.add("zeros", make, like)


def _zeros(size: int, memory_format: torch.memory_format, rows: bool, x: Tensor) -> Tensor:
    side = (1, 1) if rows else x.shape[2:]
    return x.new_zeros(len(x), size, *side).contiguous(memory_format=memory_format)


def _row(number: int, x: Tensor) -> Tensor:
    """Row `number` of images [N, C, H, W] as nodes, [N, C·W, 1, 1]; a copy."""
    return x[:, :, number].reshape(len(x), -1, 1, 1).clone()


def _with_graph(network: Network, graph: UnrolledGraph) -> Network:
    """The network around another graph."""
    result = Network.__new__(Network)
    nn.Module.__init__(result)
    result.spec, result.stem, result.graph, result.head = (
        network.spec,
        network.stem,
        graph,
        network.head,
    )
    return result


def lowering_of(network: Network) -> type[Lowering]:
    """How a network's graph is lowered. Raises WiringError for one in continuous time."""
    if network.graph.topology.dynamics is None:
        return Lowering
    if isinstance(network.graph, DiscreteGraph):
        return UnrolledLowering
    raise WiringError(
        "a graph in continuous time cannot be compiled, its solver decides the steps; "
        "use wiring.compact.compact, or wiring.export.export and load_exported, and run that"
    )
