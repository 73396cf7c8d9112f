"""What a network costs, against small ones that are counted by hand."""

from __future__ import annotations

import math

import pytest
from small_networks import PAIRS, mixed_topology, pair_name, spec

from wiring.config import Component
from wiring.cost import Cost, total
from wiring.graph import Bundle, NodeGroup, Scope, Topology
from wiring.graph.costs import cost_table, index_bits, total_cost
from wiring.graph.edges import EDGE_OPS
from wiring.network import HeadSpec, Network, StemSpec, build_network


@pytest.mark.parametrize(
    ("live", "usable", "bits"),
    [(5, 5, 0), (1, 1, 0), (1, 2, 1), (1, 1024, 10), (1, 1025, 11), (200, 1024, 1024)],
)
def test_index_bits_are_the_cheaper_of_plane_and_list(live: int, usable: int, bits: int) -> None:
    assert index_bits(live, usable) == bits
    if live < usable:
        assert bits == min(usable, live * math.ceil(math.log2(usable)))


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
    (live,) = network.graph.live().values()
    live.zero_()
    for destination, source in ((0, 0), (1, 0), (1, 2)):
        live[destination, source] = True
    return network


def test_a_cost_table_is_what_one_counts_by_hand_for_the_used_nodes() -> None:
    rows = {row.name: (row.kind, row.cost) for row in cost_table(by_hand())}
    products = 2 * 27 * 36

    def moves(values: int) -> Cost:
        return Cost(activation_bits=32 * values)

    assert rows == {
        "stem.0": (
            "stem",
            Cost(products, products, weight_bits=2 * 27 * 32) + moves(3 * 144 + 2 * 36),
        ),
        "in.norm": ("norm", Cost(2 * 36, 2 * 36, weight_bits=2 * 64) + moves(2 * 36 + 2 * 36)),
        "in.depthwise": (
            "depthwise",
            Cost(2 * 81, 2 * 81, weight_bits=2 * 9 * 32) + moves(2 * 36 + 2 * 9),
        ),
        "e": ("edges", Cost(27, 27, weight_bits=96) + moves(2 * 9 + 2 * 9)),
        "out.norm": ("norm", Cost(18, 18, weight_bits=128) + moves(18 + 18)),
        "out.pool": ("pool", Cost(additions=16) + moves(18 + 2)),
        "s.index": ("index", Cost(index_bits=4)),
        "head.0": ("head", moves(2 + 2)),
        "head.2": ("head", Cost(6, 6 + 3, weight_bits=9 * 32) + moves(2 + 3)),
    }


def test_edges_read_inputs_in_their_own_bits_and_only_those_a_live_edge_leads_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = by_hand()
    monkeypatch.setattr(type(network.graph.op("e")), "input_bits", property(lambda _: 1))
    (live,) = network.graph.live().values()
    live[:, 0] = False
    # One source of 9 pixels in one bit each, one destination of 9 sums in float32.
    (row,) = [row for row in cost_table(network, whole=True) if row.kind == "edges"]
    assert row.cost.activation_bits == 9 * 1 + 9 * 32
    live.zero_()
    (row,) = [row for row in cost_table(network, whole=True) if row.kind == "edges"]
    assert row.cost == Cost()


def test_the_energy_of_operations_and_of_memory_is_that_of_the_table() -> None:
    cost = Cost(10, 20, 800, 3, weight_bits=64, index_bits=32, transforms=5, activation_bits=320)
    assert cost.energy == pytest.approx(10 * 3.7 + 20 * 0.9 + 800 * 0.03 / 8 + 3 * 5)
    assert cost.memory_energy == pytest.approx(3 * 640 + 10 * 5)


def test_what_runs_several_times_weighs_once() -> None:
    cost = Cost(1, 2, 3, 4, weight_bits=5, index_bits=6, transforms=7, activation_bits=8)
    assert cost.repeated(3) == Cost(3, 6, 9, 12, 5, 6, 21, 24)


def test_an_instance_norm_pays_for_its_moments_and_a_crop_is_pooled_only_where_it_is() -> None:
    model = spec(mixed_topology(), "dense", "complete", head=HeadSpec(kind="crop"))
    rows = {row.name: row.cost for row in cost_table(build_network(model))}
    values = {name: 32 * 2 * size * 36 for name, size in {"a": 7, "b": 5}.items()}
    assert rows["b.norm"] == Cost(2 * 180, 3 * 180, weight_bits=320, activation_bits=values["b"])
    assert rows["a.norm"] == Cost(252, 252, weight_bits=7 * 64, activation_bits=values["a"])
    # The crop leaves all of c's 3x3 pixels, no more.
    assert rows["head.1"] == Cost(additions=4 * 8, activation_bits=32 * (4 * 9 + 4))


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
    assert costs[0].weight_bits <= costs[1].weight_bits
    assert costs[0].weight_bits > 0 or EDGE_OPS.get(op.name).fixed
