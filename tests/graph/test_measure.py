"""Dead nodes, depth, swaps and costs, against graphs small enough to count by hand."""

from __future__ import annotations

import math

import pytest
import torch
from small_networks import (
    OPS,
    PAIRS,
    images,
    mixed_topology,
    op_name,
    pair_name,
    spec,
    trained,
)
from torch import nn

from wiring.config import Component
from wiring.cost import Cost, total
from wiring.errors import TopologyError
from wiring.graph import Bundle, NodeGroup, Scope, Skip, Topology
from wiring.graph.measure import (
    constant_nodes,
    cost_table,
    dead_nodes,
    depth,
    index_bits,
    live_edges,
    resolutions,
    swaps,
    total_cost,
    used_nodes,
)
from wiring.graph.static import StaticGraph
from wiring.network import HeadSpec, Network, StemSpec, build_network

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


@pytest.mark.parametrize(
    ("live", "usable", "bits"),
    [(5, 5, 0), (1, 1, 0), (1, 2, 1), (1, 1024, 10), (1, 1025, 11), (200, 1024, 1024)],
)
def test_index_bits_are_the_cheaper_of_plane_and_list(live: int, usable: int, bits: int) -> None:
    assert index_bits(live, usable) == bits
    if live < usable:
        assert bits == min(usable, live * math.ceil(math.log2(usable)))


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


def by_hand() -> Network:
    """3 channels, 12x12 → stem stride 2 → in (4) on 6x6, depthwise to 3x3 → out (2), pooled."""
    topology = Topology(
        groups=(
            NodeGroup(name="in", size=4, steps=("norm", "act", "depthwise"), stride=2),
            NodeGroup(name="out", size=2, steps=("norm", "pool")),
        ),
        bundles=(Bundle(name="e", sources=("in",), destination="out"),),
        scopes=(Scope(name="s", bundles=("e",), budget=3),),
    )
    network = build_network(spec(topology, stem=StemSpec(stride=2)))
    wire(network.graph, e=[(0, 0), (1, 0), (1, 2)])
    return network


def test_a_cost_table_is_what_one_counts_by_hand_for_the_used_nodes() -> None:
    rows = {row.name: (row.kind, row.cost) for row in cost_table(by_hand())}
    products = 2 * 27 * 36
    assert rows == {
        "stem.0": ("stem", Cost(products, products, weight_bits=2 * 27 * 32)),
        "in.norm": ("norm", Cost(2 * 36, 2 * 36, weight_bits=2 * 64)),
        "in.depthwise": ("depthwise", Cost(2 * 81, 2 * 81, weight_bits=2 * 9 * 32)),
        "e": ("edges", Cost(27, 27, weight_bits=96)),
        "out.norm": ("norm", Cost(18, 18, weight_bits=128)),
        "out.pool": ("pool", Cost(additions=16)),
        "s.index": ("index", Cost(index_bits=4)),
        "head.0": ("head", Cost()),
        "head.2": ("head", Cost(6, 6 + 3, weight_bits=9 * 32)),
    }


def test_an_instance_norm_pays_for_its_moments_and_a_crop_is_pooled_only_where_it_is() -> None:
    model = spec(mixed_topology(), "dense", "complete", head=HeadSpec(kind="crop"))
    rows = {row.name: row.cost for row in cost_table(build_network(model))}
    assert rows["b.norm"] == Cost(2 * 5 * 36, 3 * 5 * 36, weight_bits=5 * 64)
    assert rows["a.norm"] == Cost(7 * 36, 7 * 36, weight_bits=7 * 64)
    # The crop leaves all of c's 3x3 pixels, no more.
    assert rows["head.1"] == Cost(additions=4 * 8)


def test_the_total_is_the_sum_of_the_table() -> None:
    network = by_hand()
    assert total_cost(network) == total([row.cost for row in cost_table(network)])


@pytest.mark.parametrize("kind", ["conv", "tiny"])
@pytest.mark.parametrize("head", ["linear", "crop", "none"])
def test_a_network_without_dead_parts_weighs_what_its_parameters_weigh(
    kind: str, head: str
) -> None:
    model = spec(
        mixed_topology(),
        "dense",
        "complete",
        stem=StemSpec.model_validate({"kind": kind}),
        head=HeadSpec.model_validate({"kind": head}),
    )
    network = build_network(model)
    unusable = sum(int((~scope.allowed).sum()) for _, scope in network.graph.wirings())
    parameters = sum(p.numel() for p in network.parameters()) - unusable
    cost = total_cost(network)
    assert cost.weight_bits == 32 * parameters
    assert cost.index_bits == 0


@pytest.mark.parametrize(("op", "rule"), PAIRS, ids=pair_name)
def test_more_live_edges_never_cost_less(op: Component, rule: str) -> None:
    few, many = (
        build_network(spec(mixed_topology(budgets=budgets), op, rule))
        for budgets in ((12, 14, 6), (60, 200, 20))
    )
    costs = [
        total([row.cost for row in cost_table(network) if row.kind == "edges"])
        for network in (few, many)
    ]
    assert costs[0].energy <= costs[1].energy
    assert 0 < costs[0].weight_bits <= costs[1].weight_bits
