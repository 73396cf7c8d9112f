"""Removes nodes physically; `compact` those that no output depends on: the same function in
evaluation, less work."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wiring.errors import WiringError
from wiring.graph.costs import last_convolution
from wiring.graph.measure import cut, kept_nodes
from wiring.graph.neural import NeuralGraph
from wiring.graph.resolutions import node_modules
from wiring.graph.scope import ScopeWiring
from wiring.graph.topology import Bundle, NodeGroup, Scope, Skip, Topology
from wiring.network import ModelSpec, Network, build_network

Kept = dict[str, Tensor]


@torch.no_grad()
def compact(network: Network) -> Network:
    """A new network of the same function in evaluation, without nodes that are not used.

    Live edges, weights and the mode (training or not) are kept, budgets become the numbers of
    live edges, and inputs that nothing reads leave the stem's last convolution. Raises
    WiringError for an operator or a rule whose state cannot be cut.
    """
    return cut_nodes(network, kept_nodes(network))


@torch.no_grad()
def cut_nodes(network: Network, kept: Kept, *, trains: bool = False) -> Network:
    """A new network that has only the `kept` nodes, bool [size] by group; the rest as `compact`.

    What the removed nodes computed is lost. Every scope must keep a live edge. Where training goes
    on (`trains`), a scope of which more edges live than its budget says, as rules want that train
    the complete graph first, keeps the share of its edges that the budget was.
    """
    state: dict[str, Tensor] = {}
    for prefix, part in (
        ("stem", _stem_state(network.stem, kept[network.spec.topology.input.name])),
        ("graph", _graph_state(network.graph, kept)),
        ("head", network.head.state_dict()),
    ):
        state.update({f"{prefix}.{name}": tensor for name, tensor in part.items()})
    small = build_network(compact_spec(network, kept, trains=trains))
    reference = next(network.parameters())
    small.to(device=reference.device, dtype=reference.dtype)
    small.load_state_dict(state)
    return small.train(network.training)


def compact_spec(network: Network, kept: Kept, *, trains: bool = False) -> ModelSpec:
    """The spec of a network that has only the `kept` nodes; see `cut_nodes`."""
    spec = network.spec
    topology = Topology(
        groups=tuple(_group(group, kept[group.name]) for group in spec.topology.groups),
        bundles=tuple(_bundle(spec.topology, bundle, kept) for bundle in spec.topology.bundles),
        scopes=tuple(_scope(network.graph, scope, kept, trains) for scope in spec.topology.scopes),
        skips=tuple(_skip(spec.topology, skip, kept) for skip in spec.topology.skips),
        dynamics=spec.topology.dynamics,
    )
    stem = spec.stem
    if stem.kind == "tiny" and stem.hidden is None:
        stem = stem.replace(hidden=spec.topology.input.size // 2)
    return spec.model_copy(update={"topology": topology, "stem": stem})


def _group(group: NodeGroup, kept: Tensor) -> NodeGroup:
    labels = group.labels and [group.labels[i] for i in kept.nonzero().flatten().tolist()]
    return group.replace(size=int(kept.sum()), labels=labels)


def _bundle(topology: Topology, bundle: Bundle, kept: Kept) -> Bundle:
    if bundle.edges is None:
        return bundle
    rows = _places(kept[bundle.destination])
    columns = _places(torch.cat([kept[name] for name in bundle.sources]))
    edges = [(rows[d], columns[s]) for d, s in bundle.edges if d in rows and s in columns]
    return bundle.replace(edges=edges)


def _places(kept: Tensor) -> dict[int, int]:
    """Old index to new index."""
    return {old: new for new, old in enumerate(kept.nonzero().flatten().tolist())}


def _scope(graph: NeuralGraph, scope: Scope, kept: Kept, trains: bool) -> Scope:
    if scope.budget is None and scope.limit is None:
        return scope
    wiring = graph.scope(scope.name)
    live = int(_cut_flat(graph, wiring, wiring.live, kept).sum())
    if trains and scope.budget is not None and int(wiring.live.sum()) > scope.budget:
        usable = int(_cut_flat(graph, wiring, wiring.allowed, kept).sum())
        live = max(1, round(usable * scope.budget / graph.topology.usable_edges(scope)))
    return scope.replace(budget=live, limit=None, unusable=0)


def cut_scope(network: Network, scope: str, flat: Tensor, kept: Kept) -> Tensor:
    """The part of a scope's flat tensor [E] that lies between kept nodes, [E']."""
    return _cut_flat(network.graph, network.graph.scope(scope), flat, kept)


def _cut_flat(graph: NeuralGraph, wiring: ScopeWiring, flat: Tensor, kept: Kept) -> Tensor:
    """The kept part [E'] of a scope's flat tensor [E]."""
    topology = graph.topology
    parts = wiring.split(flat).items()
    return torch.cat([cut(part, topology, topology.bundle(n), kept).flatten() for n, part in parts])


def _skip(topology: Topology, skip: Skip, kept: Kept) -> Skip:
    reads = skip.reads(topology.group(skip.destination).size)
    places = _places(kept[skip.source])
    destinations = kept[skip.destination].nonzero().flatten().tolist()
    # A destination that stays only to fill its group may read a node that is gone: any will do.
    nodes = tuple(places.get(reads[i], 0) for i in destinations)
    if nodes == tuple(range(nodes[0], nodes[0] + len(nodes))):
        return skip.replace(start=nodes[0], nodes=None)
    return skip.replace(start=0, nodes=nodes)


def _stem_state(stem: nn.Sequential, kept: Tensor) -> dict[str, Tensor]:
    last = last_convolution(stem)
    state: dict[str, Tensor] = {}
    for position, module in enumerate(stem):
        for name, tensor in module.state_dict().items():
            sliced = position >= last and tensor.dim() > 0
            state[f"{position}.{name}"] = tensor[kept] if sliced else tensor
    return state


def _graph_state(graph: NeuralGraph, kept: Kept) -> dict[str, Tensor]:
    topology = graph.topology
    state: dict[str, Tensor] = {"_extra_state": graph.get_extra_state()}
    state.update(graph.named_buffers(recurse=False))
    for bundle in topology.bundles:
        rows = kept[bundle.destination].nonzero().flatten()
        columns = torch.cat([kept[name] for name in bundle.sources]).nonzero().flatten()
        for name, tensor in graph.op(bundle.name).restrict(rows, columns).items():
            state[f"ops.{bundle.name}.{name}"] = tensor
    for group in topology.groups:
        for place, module in node_modules(graph, group).items():
            for name, tensor in module.state_dict().items():
                whole = tensor.dim() == 0
                state[f"nodes.{place}.{name}"] = tensor if whole else tensor[kept[group.name]]
    for name, tensor in graph.gates.state_dict().items():
        state[f"gates.{name}"] = tensor
    for scope, wiring in graph.wirings():
        for name, tensor in wiring.state_dict().items():
            if name == "unusable":
                continue
            if tensor.shape == wiring.live.shape:
                tensor = _cut_flat(graph, wiring, tensor, kept)
            elif tensor.dim() > 0:
                raise WiringError(
                    f"rule {type(wiring.rule).__name__} keeps '{name}' of shape "
                    f"{list(tensor.shape)}, which cannot be cut to fewer edges"
                )
            state[f"scopes.{scope}.{name}"] = tensor
    return state
