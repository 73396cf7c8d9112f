"""A compacted network is smaller and the same function."""

from __future__ import annotations

import pytest
import torch
from small_networks import PAIRS, SIDE, images, is_tied, mixed_topology, pair_name, spec, trained

from wiring.compact import compact
from wiring.config import Component
from wiring.errors import WiringError
from wiring.graph import Bundle, NodeGroup, Scope, Skip, Topology
from wiring.graph.costs import cost_table, total_cost
from wiring.graph.driving import attach
from wiring.graph.measure import dead_nodes, depth, live_edges
from wiring.network import HeadSpec, Network, StemSpec, build_network


def sizes(network: Network) -> dict[str, int]:
    return {group.name: group.size for group in network.spec.topology.groups}


@pytest.mark.parametrize(("op", "rule"), PAIRS, ids=pair_name)
@pytest.mark.parametrize("kind", ["conv", "tiny"])
def test_it_is_the_same_function_for_every_operator_and_rule(
    op: Component, rule: str, kind: str
) -> None:
    stem = StemSpec.model_validate({"kind": kind})
    network = trained(spec(mixed_topology(), op, rule, stem=stem))
    small = compact(network)
    assert not small.training
    torch.testing.assert_close(small(images()), network(images()), rtol=1e-4, atol=1e-5)
    if rule != "complete" and "input_scale" not in op.options and not is_tied(op):
        assert dead_nodes(network.graph) > 0
        assert sum(sizes(small).values()) < sum(sizes(network).values())


@pytest.mark.parametrize(("op", "rule"), PAIRS, ids=pair_name)
def test_the_cost_of_a_network_is_that_of_its_compacted_self(op: Component, rule: str) -> None:
    network = trained(spec(mixed_topology(), op, rule))
    small = compact(network)
    assert total_cost(network) == total_cost(small)
    assert cost_table(network) == cost_table(small)
    assert depth(network.graph) == depth(small.graph)


def test_compacting_twice_changes_nothing_more() -> None:
    small = compact(trained(spec(mixed_topology())))
    again = compact(small)
    assert again.spec == small.spec
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in small.state_dict().items())


def test_the_original_and_the_random_state_are_left_alone() -> None:
    network = trained(spec(mixed_topology()))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.random.get_rng_state()
    compact(network)
    assert torch.equal(generator, torch.random.get_rng_state())
    after = network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_budgets_become_live_edges_and_labels_follow_their_nodes() -> None:
    network = trained(spec(mixed_topology()))
    small = compact(network)
    assert sum(scope.budget or 0 for scope in small.spec.topology.scopes) == live_edges(small.graph)
    labels = small.spec.topology.group("b").labels
    assert labels is not None
    assert len(labels) == small.spec.topology.group("b").size
    assert set(labels) <= {f"unit {i}" for i in range(5)}


def test_an_images_own_channels_stay() -> None:
    topology = mixed_topology(inputs=5, budgets=(3, 2, 2))
    network = trained(spec(topology, stem=StemSpec(kind="identity"), channels=5), steps=1)
    small = compact(network)
    assert sizes(small)["in"] == 5
    x = images(channels=5)
    torch.testing.assert_close(small(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_compacted_network_trains_on_and_rewires() -> None:
    small = compact(trained(spec(mixed_topology()))).train()
    before = small(images())
    optimizer = torch.optim.SGD(small.parameters(), lr=1.0)
    attach(small, optimizer)
    before.square().sum().backward()
    live = live_edges(small.graph)
    optimizer.step()
    assert live_edges(small.graph) == live
    assert not torch.equal(small(images()), before)


def broken_chain() -> Network:
    """in → a → b → out with two live edges that never meet: scope `one` reaches no output."""
    groups = tuple(
        NodeGroup(name=name, size=4, steps=("norm", "act"), stage=stage)
        for stage, name in enumerate(("in", "a", "b", "out"))
    )
    pairs = (("one", "in", "a"), ("two", "a", "b"), ("three", "b", "out"))
    topology = Topology(
        groups=groups,
        bundles=tuple(Bundle(name=n, sources=(s,), destination=d) for n, s, d in pairs),
        scopes=tuple(Scope(name=n, bundles=(n,), budget=1) for n, *_ in pairs),
    )
    network = trained(spec(topology, "dense", "random"))
    edges = (("one", 3, 2), ("two", 1, 0), ("three", 0, 2))
    for name, destination, source in edges:
        live = network.graph.live()[name]
        live.zero_()
        live[destination, source] = True
    return network


def test_a_part_that_reaches_no_output_shrinks_to_one_edge_and_one_node() -> None:
    network = broken_chain()
    small = compact(network)
    assert sizes(small) == {"in": 1, "a": 2, "b": 2, "out": 4}
    assert [scope.budget for scope in small.spec.topology.scopes] == [1, 1, 1]
    torch.testing.assert_close(small(images()), network(images()))
    assert total_cost(network) == total_cost(small)
    assert compact(small).spec == small.spec


def test_a_skip_follows_nodes_that_no_longer_stand_in_a_row() -> None:
    topology = Topology(
        groups=(
            NodeGroup(name="in", size=6),
            NodeGroup(name="mid", size=4),
            NodeGroup(name="out", size=2),
        ),
        bundles=(
            Bundle(name="im", sources=("in",), destination="mid"),
            Bundle(name="io", sources=("in",), destination="out"),
            Bundle(name="mo", sources=("mid",), destination="out"),
        ),
        scopes=(
            Scope(name="s", bundles=("im", "mo"), budget=4),
            Scope(name="t", bundles=("io",), budget=1),
        ),
        skips=(Skip(source="in", destination="mid", start=1),),
    )
    network = trained(spec(topology))
    for mask in network.graph.live().values():
        mask.zero_()
    for name, pairs in {"im": [(0, 0)], "mo": [(0, 0), (1, 3), (1, 0)], "io": [(0, 2)]}.items():
        for destination, source in pairs:
            network.graph.live()[name][destination, source] = True
    small = compact(network)
    # mid 0 and 3 stay, which read in 1 and 4; in 2 stays between them, for the edge io.
    assert sizes(small) == {"in": 4, "mid": 2, "out": 2}
    assert small.spec.topology.skips[0].nodes == (1, 3)
    torch.testing.assert_close(small(images()), network(images()))


def test_state_that_cannot_be_cut_is_refused_by_name() -> None:
    network = trained(spec(mixed_topology()))
    network.graph.op("in-a").register_buffer("table", torch.zeros(3))
    with pytest.raises(WiringError, match=r"Dense keeps 'table' of shape \[3\] and does not say"):
        compact(network)
    network = trained(spec(mixed_topology()))
    network.graph.scope("late").rule.register_buffer("table", torch.zeros(3))
    with pytest.raises(WiringError, match=r"keeps 'rule.table' of shape \[3\], which cannot"):
        compact(network)


def test_a_head_without_weights_keeps_every_output() -> None:
    network = trained(spec(mixed_topology(), head=HeadSpec(kind="none")))
    small = compact(network)
    assert sizes(small)["out"] == 4
    assert small(images()).shape == (6, 4)


def test_precision_and_mode_are_kept() -> None:
    network = build_network(spec(mixed_topology())).double().train()
    small = compact(network)
    assert small.training
    assert small(torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)).dtype == torch.float64
