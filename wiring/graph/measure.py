"""What a wiring is worth: its used nodes, its depth, its swaps. What it costs is in `costs.py`.

A node is *used* if a path of live edges, or a skip, leads from it to an output node. A node that
is not used is dead. A used node that no input reaches is constant: its norm still has a bias.

In a graph over time paths are walks, as `walks` has them, and every edge counts once per pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from wiring.errors import TopologyError
from wiring.graph.neural import NeuralGraph
from wiring.graph.topology import Bundle, Topology
from wiring.graph.walks import longest_walks, used_in_time


class _Image(Protocol):
    @property
    def side(self) -> int: ...


class _Spec(Protocol):
    @property
    def image(self) -> _Image: ...


class Classifier(Protocol):
    """Stem, neural graph and head, and the side of the image: what a network is measured by."""

    @property
    def spec(self) -> _Spec: ...
    @property
    def stem(self) -> nn.Sequential: ...
    @property
    def graph(self) -> NeuralGraph: ...
    @property
    def head(self) -> nn.Sequential: ...


def source_sizes(topology: Topology, bundle: Bundle) -> list[int]:
    """Sizes of a bundle's source groups, in the order of its weight's columns."""
    return [topology.group(name).size for name in bundle.sources]


@torch.no_grad()
def used_nodes(graph: NeuralGraph) -> dict[str, Tensor]:
    """Nodes from which live edges or skips lead to an output node; bool [size] by group."""
    if graph.topology.dynamics is not None:
        return used_in_time(graph)
    topology, live = graph.topology, graph.live()
    device = next(iter(live.values())).device
    used = {g.name: torch.zeros(g.size, dtype=torch.bool, device=device) for g in topology.groups}
    used[topology.output.name].fill_(True)
    for group in reversed(topology.groups):
        wanted = used[group.name]
        if not wanted.any():
            continue
        for bundle in topology.bundles:
            if bundle.destination == group.name:
                mask = live[bundle.name] & wanted.view(-1, 1, 1, 1)
                reads = graph.op(bundle.name).used_sources(mask)
                parts = torch.split(reads, source_sizes(topology, bundle))
                for name, part in zip(bundle.sources, parts, strict=True):
                    used[name] |= part
        for skip in topology.skips:
            if skip.destination == group.name:
                read = torch.tensor(skip.reads(group.size), device=device)
                used[skip.source][read[wanted]] = True
    return used


def kept_nodes(network: Classifier) -> dict[str, Tensor]:
    """Nodes that remain when a network is compacted; bool [size] by group.

    The used ones. Besides, an image's own channels stay, a scope keeps a live edge with both
    its nodes, and a group keeps one node: a topology has no empty parts. Edges that share
    parameters cannot be cut, so all their nodes stay.
    """
    graph, topology = network.graph, network.graph.topology
    kept = used_nodes(graph)
    for bundle in topology.bundles:
        if graph.op(bundle.name).tied:
            for name in (bundle.destination, *bundle.sources):
                kept[name].fill_(True)
    if len(network.stem) == 0:
        kept[topology.input.name].fill_(True)
    live = graph.live()
    for scope in topology.scopes:
        bundles = [topology.bundle(name) for name in scope.bundles]
        if any(cut(live[b.name], topology, b, kept).any() for b in bundles):
            continue
        bundle = next(b for b in bundles if live[b.name].any())
        destination, source = live[bundle.name].nonzero()[0, :2].tolist()
        kept[bundle.destination][destination] = True
        for name, size in zip(bundle.sources, source_sizes(topology, bundle), strict=True):
            if 0 <= source < size:
                kept[name][source] = True
            source -= size
    for mask in kept.values():
        if not mask.any():
            mask[0] = True
    return kept


def cut(mask: Tensor, topology: Topology, bundle: Bundle, kept: Mapping[str, Tensor]) -> Tensor:
    """The part [D', S', kh, kw] of a bundle's tensor [D, S, kh, kw] between kept nodes."""
    sources = torch.cat([kept[name] for name in bundle.sources])
    return mask[kept[bundle.destination]][:, sources]


def dead_nodes(graph: NeuralGraph) -> int:
    """How many nodes do not matter to any output."""
    return sum(int((~used).sum()) for used in used_nodes(graph).values())


def constant_nodes(graph: NeuralGraph) -> int:
    """How many nodes are used though no path of live edges leads to them from an input."""
    over_time = graph.topology.dynamics is not None
    lengths = longest_walks(graph)[1] if over_time else _longest_paths(graph)
    used = used_nodes(graph)
    return sum(int((used[name] & (lengths[name] < 0)).sum()) for name in used)


def depth(graph: NeuralGraph) -> int:
    """Edges on the longest live path from an input to an output node; 0 where there is none."""
    over_time = graph.topology.dynamics is not None
    lengths = longest_walks(graph)[0] if over_time else _longest_paths(graph)
    longest = lengths[graph.topology.output.name]
    return max(0, int(longest.max()))


def _longest_paths(graph: NeuralGraph) -> dict[str, Tensor]:
    """Live edges on the longest path from an input to each node, -1 for none; int64 [size]."""
    topology, live = graph.topology, graph.live()
    device = next(iter(live.values())).device
    longest: dict[str, Tensor] = {}
    for group in topology.groups:
        first = 0 if group is topology.input else -1
        best = torch.full((group.size,), first, device=device)
        for bundle in topology.bundles:
            if bundle.destination == group.name:
                sources = torch.cat([longest[name] for name in bundle.sources])
                joined = live[bundle.name].any(3).any(2) & (sources >= 0)
                lengths = torch.where(joined, sources + 1, -1).amax(dim=1)
                best = torch.maximum(best, lengths)
        for skip in topology.skips:
            if skip.destination == group.name:
                read = torch.tensor(skip.reads(group.size), device=device)
                best = torch.maximum(best, longest[skip.source][read])
        longest[group.name] = best
    return longest


def live_edges(graph: NeuralGraph) -> int:
    """How many edges live, over all scopes."""
    return sum(int(scope.live.sum()) for _, scope in graph.wirings())


def swaps(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    """How many edges live after and did not before; flat bool masks [E] by scope.

    Raises TopologyError where the two belong to different graphs.
    """
    shapes = [{name: mask.shape for name, mask in masks.items()} for masks in (before, after)]
    if shapes[0] != shapes[1]:
        raise TopologyError(f"swaps compares one graph with itself, got scopes of {shapes}")
    return sum(int((after[name] & ~before[name]).sum()) for name in after)
