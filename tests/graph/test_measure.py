"""Dead nodes, depth and swaps, against graphs small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from small_networks import (
    OPS,
    images,
    mixed_topology,
    op_name,
    spec,
    trained,
)
from torch import nn

from wiring.config import Component
from wiring.errors import TopologyError
from wiring.graph import Bundle, NodeGroup, Scope, Skip, Topology
from wiring.graph.measure import constant_nodes, dead_nodes, depth, live_edges, swaps, used_nodes
from wiring.graph.resolutions import resolutions
from wiring.graph.static import StaticGraph
from wiring.network import StemSpec, build_network

Pairs = list[tuple[int, int]]


def chain(op: Component | None = None, *, skip: bool = False) -> StaticGraph:
    """in (3) → mid (3) → out (2) and in → out, 1x1, all edges usable."""
    topology = Topology(
        groups=tuple(NodeGroup(name=n, size=s) for n, s in (("in", 3), ("mid", 3), ("out", 2))),
        bundles=(
            Bundle(name="im", sources=("in",), destination="mid"),
            Bundle(name="o", sources=("in", "mid"), destination="out"),
        ),
        scopes=(Scope(name="s", bundles=("im", "o")),),
        skips=(Skip(source="in", destination="out", start=1),) if skip else (),
    )
    return StaticGraph(topology, op or Component(name="dense"), Component(name="complete"))


def wire(graph: StaticGraph, **edges: Pairs) -> StaticGraph:
    """Let exactly the (destination, source) pairs of each bundle live."""
    for mask in graph.live().values():
        mask.zero_()
    for bundle, pairs in edges.items():
        for destination, source in pairs:
            graph.live()[bundle][destination, source] = True
    return graph


def used(graph: StaticGraph) -> dict[str, list[int]]:
    return {name: mask.nonzero().flatten().tolist() for name, mask in used_nodes(graph).items()}


def test_a_node_is_used_if_a_live_path_leads_to_an_output() -> None:
    graph = wire(chain(), im=[(0, 1), (2, 0)], o=[(0, 3), (1, 4)])
    assert used(graph) == {"in": [1], "mid": [0, 1], "out": [0, 1]}
    assert dead_nodes(graph) == 3
    assert live_edges(graph) == 4


def test_a_used_node_that_no_input_reaches_is_constant_and_not_dead() -> None:
    graph = wire(chain(), im=[(0, 1)], o=[(0, 3), (1, 4)])
    # mid 1 lives on its bias alone, and so does out 1 behind it.
    assert constant_nodes(graph) == 2
    assert used(graph)["mid"] == [0, 1]


def test_a_skip_uses_its_source() -> None:
    graph = wire(chain(skip=True))
    assert used(graph) == {"in": [1, 2], "mid": [], "out": [0, 1]}
    assert constant_nodes(graph) == 0
    assert depth(graph) == 0


def test_an_operator_that_reads_every_source_uses_every_source() -> None:
    edges: dict[str, Pairs] = {"o": [(0, 0)]}
    plain = wire(chain(Component(name="xnor")), **edges)
    scaled = wire(chain(Component(name="xnor", input_scale=True)), **edges)
    assert used(plain) == {"in": [0], "mid": [], "out": [0, 1]}
    assert used(scaled) == {"in": [0, 1, 2], "mid": [0, 1, 2], "out": [0, 1]}


@pytest.mark.parametrize("op", [op for op in OPS if "input_scale" not in op.options], ids=op_name)
def test_dead_nodes_do_not_matter(op: Component) -> None:
    network = trained(spec(mixed_topology(), op), steps=1)
    x = images()
    expected = network(x)
    found = used_nodes(network.graph)
    assert any(not mask.all() for mask in found.values())
    for group, mask in found.items():
        for name, tensor in network.graph.nodes[group].named_parameters():
            if name == "norm.bias":
                tensor.detach()[~mask] += 7.0
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


def test_depth_is_the_longest_live_path_from_an_input() -> None:
    assert depth(wire(chain(), im=[(0, 1)], o=[(0, 3), (1, 2)])) == 2
    assert depth(wire(chain(), im=[(0, 1)], o=[(1, 2)])) == 1
    # mid 2 is fed by nothing: the edge out of it lies on no path from an input.
    assert depth(wire(chain(), im=[(0, 1)], o=[(0, 5)])) == 0


def test_swaps_counts_the_edges_that_came_to_life() -> None:
    before = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, False])}
    after = {"a": torch.tensor([False, True, True]), "b": torch.tensor([False, True])}
    assert swaps(before, after) == 2
    assert swaps(before, before) == 0
    with pytest.raises(TopologyError, match="compares one graph with itself"):
        swaps(before, {"a": before["a"]})


@pytest.mark.parametrize("stem", [StemSpec(), StemSpec(stride=2), StemSpec(kind="tiny")])
def test_resolutions_are_those_of_a_real_forward_pass(stem: StemSpec) -> None:
    network = build_network(spec(mixed_topology(), stem=stem)).eval()
    seen: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> None:
        def look(_: nn.Module, given: tuple[torch.Tensor], made: torch.Tensor) -> None:
            seen[name] = (*given[0].shape[2:], *made.shape[2:])

        network.graph.nodes[name].register_forward_hook(look)

    for group in network.spec.topology.groups:
        watch(group.name)
    network(images())
    first = seen["in"][:2]
    sides = resolutions(network.graph, (first[0], first[1]))
    assert {name: (*steps[0], *steps[-1]) for name, steps in sides.items()} == seen


def test_sums_of_different_resolutions_are_refused() -> None:
    topology = mixed_topology()
    skips = (Skip(source="in", destination="b"),)
    graph = StaticGraph(
        topology.replace(skips=[s.to_dict() for s in skips]),
        Component(name="dense"),
        Component(name="dnw"),
    )
    with pytest.raises(TopologyError, match=r"'b' receives sums of resolutions \[\(6, 6\), \(12"):
        resolutions(graph, (12, 12))
