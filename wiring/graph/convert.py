"""Topologies to and from NetworkX; with `formats`, to and from node-link JSON and GraphML.

A node is named "group:index" and carries group, index, stage (and its label); an edge carries its
bundle, where it is known its weight, and for kernels larger than 1x1 how many positions live and
which. Bundles of different operators may join the same nodes: then one edge stands for all of
them, with their names, operators and kernels listed after commas. Skips and edges that are not
drawn live on in the graph attribute `topology`, which alone says what the topology is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import networkx as nx

from wiring.config import parse
from wiring.errors import BudgetError, ConfigError, TopologyError
from wiring.graph.formats import (
    check_weights,
    from_graphml,
    from_node_link,
    read_graph,
    to_graphml,
    to_node_link,
    write_graph,
)
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "from_graphml",
    "from_networkx",
    "from_node_link",
    "live_from_networkx",
    "read_graph",
    "to_graphml",
    "to_networkx",
    "to_node_link",
    "write_graph",
]


def to_networkx(
    topology: Topology,
    live: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> nx.DiGraph:
    """The graph of a topology: all usable edges, or those that live where `live` is given.

    live bool and weights float, both [D, S, kh, kw] by bundle. An edge's `weight` is the signed
    weight of a 1x1 kernel, and the mean magnitude of a larger one's live positions. Raises
    TopologyError for a weight that is not finite, and where two bundles of the same operator join
    the same nodes. Of several operators' weights the largest is told, and all live positions count.
    """
    graph = nx.DiGraph(topology=json.dumps(topology.to_dict(), separators=(",", ":")))
    for group in topology.groups:
        for index in range(group.size):
            label = {} if group.labels is None else {"label": group.labels[index]}
            where = {"group": group.name, "index": index, "stage": group.stage}
            graph.add_node(f"{group.name}:{index}", **where, **label)
    for bundle in topology.bundles:
        names = _source_names(topology, bundle)
        for destination, source, attributes in _edges(topology, bundle, live, weights):
            edge = (names[source], f"{bundle.destination}:{destination}")
            if bundle.op is not None:
                attributes["op"] = bundle.op.name
            attributes["bundle"] = bundle.name
            if graph.has_edge(*edge):
                attributes = _beside(graph.edges[edge], attributes, edge)
            graph.add_edge(*edge, **attributes)
    return graph


def _beside(
    there: Mapping[str, Any], other: Mapping[str, Any], edge: tuple[str, str]
) -> dict[str, Any]:
    """One edge for those of bundles of different operators."""
    if "op" not in there or "op" not in other or other["op"] in there["op"].split(","):
        raise TopologyError(
            f"bundles '{there['bundle']}' and '{other['bundle']}' both join {edge[0]} to "
            f"{edge[1]}; a graph file holds one edge of an operator between two nodes"
        )
    keys = [key for key in ("bundle", "op", "kernel") if key in other]
    joined: dict[str, Any] = {key: f"{there[key]},{other[key]}" for key in keys}
    if "live" in other:
        joined["live"] = there["live"] + other["live"]
    if "weight" in other:
        joined["weight"] = max(there["weight"], other["weight"], key=abs)
    return joined


def _source_names(topology: Topology, bundle: Bundle) -> list[str]:
    return [f"{name}:{i}" for name in bundle.sources for i in range(topology.group(name).size)]


def _edges(
    topology: Topology,
    bundle: Bundle,
    live: Mapping[str, Tensor] | None,
    weights: Mapping[str, Tensor] | None,
) -> Iterable[tuple[int, int, dict[str, Any]]]:
    """(destination, source, attributes) of the edges to draw, in row-major order."""
    import torch

    shape = topology.weight_shape(bundle)
    mask = None if live is None else _of_bundle(live, bundle, shape)
    weight = None if weights is None else _of_bundle(weights, bundle, shape).float()
    if weight is not None and not weight.isfinite().all():
        raise TopologyError(f"bundle '{bundle.name}' has a weight that is NaN or infinite")
    pairs: list[tuple[int, int]]
    if mask is not None:
        pairs = mask.any(3).any(2).nonzero().tolist()
    elif bundle.edges is not None:
        pairs = list(bundle.edges)
    else:
        pairs = [(d, s) for d in range(shape[0]) for s in range(shape[1])]
    if not pairs:
        return
    # Whole columns first: indexing a tensor once per edge takes minutes on a large graph.
    rows, columns = (list(column) for column in zip(*pairs, strict=True))
    single = math.prod(bundle.kernel) == 1
    known: dict[str, list[Any]] = {}
    if mask is not None:
        kernels = mask[rows, columns].flatten(1)
        if not single:
            known["live"] = kernels.sum(dim=1).tolist()
            known["kernel"] = ["".join("01"[bit] for bit in bits) for bits in kernels.tolist()]
    if weight is not None:
        values = weight[rows, columns].flatten(1)
        if not single:
            counted = torch.ones_like(values) if mask is None else kernels.float()
            values = (values.abs() * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
        # Nine digits are all a float32 has; the rest would only make files longer.
        known["weight"] = [float(f"{value:.9g}") for value in values[:, 0].tolist()]
    for place, (destination, source) in enumerate(pairs):
        yield destination, source, {name: column[place] for name, column in known.items()}


def _of_bundle(
    tensors: Mapping[str, Tensor], bundle: Bundle, shape: tuple[int, int, int, int]
) -> Tensor:
    tensor = tensors.get(bundle.name)
    if tensor is None or tuple(tensor.shape) != shape:
        got = "nothing" if tensor is None else list(tensor.shape)
        raise TopologyError(f"bundle '{bundle.name}' needs a tensor {list(shape)}, got {got}")
    return tensor.detach().cpu()


def from_networkx(graph: nx.DiGraph) -> Topology:
    """The topology that a graph came from; of any other directed acyclic graph, its own.

    Such a graph's topological generations become groups, nodes without successors the last one;
    every edge is usable, and all are one scope without a budget. Raises TopologyError for a
    cycle, a graph that is empty, undirected or a multigraph, an isolated node, a weight that is
    NaN or infinite, and for an edge or node that a graph's own `topology` does not have.
    """
    if not graph.is_directed() or graph.is_multigraph():
        raise TopologyError("a neural graph is directed and has one edge between two nodes")
    check_weights(graph)
    text = graph.graph.get("topology")
    return _of_generations(graph) if text is None else _own_topology(graph, text)


def _own_topology(graph: nx.DiGraph, text: Any) -> Topology:
    try:
        topology = parse(Topology, json.loads(text))
    except (TypeError, ValueError, ConfigError, BudgetError) as error:
        raise TopologyError(f"the graph's attribute 'topology' is broken: {error}") from None
    nodes = {f"{group.name}:{i}" for group in topology.groups for i in range(group.size)}
    if nodes != set(graph.nodes):
        name = min(nodes.symmetric_difference(graph.nodes), key=str)
        raise TopologyError(f"node {name} is not both in the graph and in its topology")
    bundles = {bundle.name: bundle for bundle in topology.bundles}
    rows = {name: _Rows(topology, bundle) for name, bundle in bundles.items()}
    for source, destination, names in graph.edges(data="bundle"):
        for name in str(names).split(","):
            if name not in rows or not rows[name].has(source, destination):
                raise TopologyError(
                    f"edge {source} to {destination} of bundle {name!r} is not in the graph's "
                    "topology"
                )
    return topology


class _Rows:
    """Where the named nodes of one bundle stand in its weight."""

    def __init__(self, topology: Topology, bundle: Bundle) -> None:
        names = _source_names(topology, bundle)
        size = topology.group(bundle.destination).size
        self.sources = {name: index for index, name in enumerate(names)}
        self.destinations = {f"{bundle.destination}:{i}": i for i in range(size)}
        self.usable = None if bundle.edges is None else frozenset(bundle.edges)

    def has(self, source: str, destination: str) -> bool:
        if source not in self.sources or destination not in self.destinations:
            return False
        place = (self.destinations[destination], self.sources[source])
        return self.usable is None or place in self.usable


def live_from_networkx(graph: nx.DiGraph) -> dict[str, Tensor]:
    """The live mask that `to_networkx` was given: bool [D, S, kh, kw] by bundle.

    A 1x1 edge that is in the graph lives. Raises TopologyError where the graph has no topology
    of its own, or a larger edge says nothing or nonsense of which of its positions live.
    """
    import torch

    if "topology" not in graph.graph:
        raise TopologyError("only a graph with a 'topology' of its own has live edges")
    topology = from_networkx(graph)
    masks = {
        b.name: torch.zeros(topology.weight_shape(b), dtype=torch.bool) for b in topology.bundles
    }
    rows = {bundle.name: _Rows(topology, bundle) for bundle in topology.bundles}
    for source, destination, data in graph.edges(data=True):
        names = data["bundle"].split(",")
        positions = math.prod(masks[names[0]].shape[2:])
        known = data.get("kernel", ",".join("1" for _ in names) if positions == 1 else "")
        kernels = str(known).split(",")
        if len(kernels) != len(names) or not all(
            re.fullmatch(f"[01]{{{positions}}}", kernel) for kernel in kernels
        ):
            raise TopologyError(
                f"edge {source} to {destination} does not say which of its {positions} positions "
                f"live: live={data.get('live')!r}, kernel={data.get('kernel')!r}"
            )
        for name, kernel in zip(names, kernels, strict=True):
            mask, row = masks[name], rows[name]
            bits = torch.tensor([bit == "1" for bit in kernel]).view(mask.shape[2:])
            mask[row.destinations[destination], row.sources[source]] = bits
    return masks


def _of_generations(graph: nx.DiGraph) -> Topology:
    if graph.number_of_nodes() == 0:
        raise TopologyError("the graph is empty; a neural graph has at least one edge")
    isolated = next(nx.isolates(graph), None)
    if isolated is not None:
        raise TopologyError(f"node {isolated} is isolated; every node needs an edge")
    try:
        generations = list(nx.topological_generations(graph))
    except nx.NetworkXUnfeasible:
        circle = [str(source) for source, *_ in nx.find_cycle(graph)]
        raise TopologyError(
            f"the graph has the cycle {' to '.join([*circle, circle[0]])}; "
            "a static graph has no cycle"
        ) from None
    labels = {str(node) for node in graph}
    if len(labels) != len(graph):
        raise TopologyError("two nodes of the graph have the same name")
    sinks = [node for node in graph if graph.out_degree(node) == 0]
    layers = [[n for n in layer if graph.out_degree(n) > 0] for layer in generations[:-1]]
    layers = [sorted(layer, key=_natural) for layer in [*layers, sinks]]
    place = {node: (stage, i) for stage, layer in enumerate(layers) for i, node in enumerate(layer)}
    groups = [
        NodeGroup(name=f"g{stage}", size=len(layer), stage=stage, labels=tuple(map(str, layer)))
        for stage, layer in enumerate(layers)
    ]
    bundles = [_bundle_into(stage, layers, graph, place) for stage in range(1, len(layers))]
    scope = Scope(name="graph", bundles=tuple(bundle.name for bundle in bundles))
    return Topology(groups=tuple(groups), bundles=tuple(bundles), scopes=(scope,))


def _bundle_into(
    stage: int, layers: list[list[Any]], graph: nx.DiGraph, place: dict[Any, tuple[int, int]]
) -> Bundle:
    pairs = [(place[u], place[v][1]) for v in layers[stage] for u in graph.predecessors(v)]
    stages = sorted({source for (source, _), _ in pairs})
    offsets = {s: sum(len(layers[t]) for t in stages if t < s) for s in stages}
    return Bundle(
        name=f"e{stage}",
        sources=tuple(f"g{source}" for source in stages),
        destination=f"g{stage}",
        edges=tuple((destination, offsets[s] + index) for (s, index), destination in pairs),
    )


def _natural(node: Any) -> tuple[int, str]:
    """Sorts numbers by value, and the same nodes the same way however the edges were listed."""
    return len(str(node)), str(node)
