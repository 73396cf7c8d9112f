"""Operators that compete for one budget of cost: what they expand to, and that all of it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import wiring
from search.budget import apply_budget
from tests.graph.small_networks import images, mixed_topology, spec, trained
from wiring.compact import compact
from wiring.config import Component
from wiring.errors import BudgetError, ConfigError, TopologyError, UnknownNameError
from wiring.export import export, load_exported
from wiring.graph.convert import (
    from_graphml,
    from_networkx,
    live_from_networkx,
    to_graphml,
    to_networkx,
)
from wiring.graph.costs import cost_table, edge_positions, edge_prices, total_cost
from wiring.graph.mixed import PRODUCT_PJ, expand, operators
from wiring.graph.rules import select_within
from wiring.graph.topology import Bundle, Limit, NodeGroup, Scope, Topology
from wiring.network import ModelSpec, Network, build_network

MIXED = Component(name="mixed:dense,xnor,adder")


def mixed_spec(op: Component = MIXED, rule: str = "dnw") -> ModelSpec:
    return apply_budget(spec(mixed_topology(), op, rule), None)


def spent(network: Network, scope: str) -> float:
    """What a scope's live edges cost by their prices."""
    wiring_ = network.graph.scope(scope)
    prices = edge_prices(network)
    return sum(prices[n] * float(m.sum()) for n, m in wiring_.split(wiring_.live).items())


def test_every_bundle_becomes_one_per_operator_in_a_scope_limited_by_energy() -> None:
    model = mixed_spec()
    topology = model.topology
    assert [b.name for b in topology.bundles[:3]] == ["in-a-dense", "in-a-xnor", "in-a-adder"]
    assert {b.op.name for b in topology.bundles if b.op} == {"dense", "xnor", "adder"}
    kernels = topology.bundle("b-c-xnor")
    assert (kernels.kernel, kernels.stride, kernels.padding) == ((3, 3), 2, 1)
    positions = edge_positions(build_network(spec(mixed_topology())))
    scope = next(scope for scope in topology.scopes if scope.name == "kernels")
    assert scope.budget is None
    assert scope.limit == Limit(unit="energy", amount=14 * PRODUCT_PJ * positions["b-c"])
    assert model.op.name == "mixed:dense,xnor,adder"


def test_a_bundle_with_an_operator_of_its_own_stays_as_it_is() -> None:
    topology = Topology(
        groups=tuple(NodeGroup(name=n, size=3) for n in ("in", "mid", "out")),
        bundles=(
            Bundle(name="e", sources=("in",), destination="mid"),
            Bundle(name="f", sources=("mid",), destination="out", op=Component(name="dense")),
        ),
        scopes=(Scope(name="s", bundles=("e",)), Scope(name="t", bundles=("f",), budget=4)),
    )
    expanded = expand(topology, operators(MIXED), {"e": 10, "f": 10})
    assert expanded.bundle("f") == topology.bundle("f")
    assert expanded.scopes[1] == topology.scopes[1]
    assert expanded.scopes[0].limit == Limit(unit="energy", amount=9 * 10 * PRODUCT_PJ)


@pytest.mark.parametrize("rule", ["dnw", "dnw-no-update", "random"])
def test_live_edges_never_cost_more_than_the_limit(rule: str) -> None:
    network = trained(mixed_spec(rule=rule))
    for scope in network.spec.topology.scopes:
        assert scope.limit is not None
        total = spent(network, scope.name)
        assert 0 < total <= scope.limit.amount * (1 + 1e-6)
        cheapest = min(edge_prices(network)[name] for name in scope.bundles)
        everything = all(network.graph.live()[name].all() for name in scope.bundles)
        assert everything or total > scope.limit.amount - max(edge_prices(network).values())
        assert cheapest > 0


def test_a_rule_that_counts_edges_is_refused_where_cost_is_limited() -> None:
    with pytest.raises(BudgetError, match="CompleteGraph keeps edges by their number"):
        build_network(mixed_spec(rule="complete"))


def test_dear_edges_live_only_where_their_score_pays_for_them() -> None:
    scores, prices = torch.tensor([4.0, 3.0, 1.0, 0.9]), torch.tensor([4.0, 4.0, 0.5, 0.5])
    everything = torch.ones(4, dtype=torch.bool)
    live = select_within(scores, prices, everything, 5.0)
    assert live.tolist() == [True, False, True, True]
    by_score = select_within(scores, prices, everything, 5.0, per_cost=False)
    assert by_score.tolist() == [True, False, False, False]


def test_what_costs_nothing_lives_before_all_else() -> None:
    scores, prices = torch.tensor([9.0, 0.0, 0.1]), torch.tensor([1.0, 0.0, 0.0])
    live = select_within(scores, prices, torch.ones(3, dtype=torch.bool), 0.5)
    assert live.tolist() == [False, False, True] or live.tolist() == [False, True, True]


def test_scores_of_each_operator_are_multiples_of_their_mean() -> None:
    graph = build_network(mixed_spec()).graph
    scope = graph.scope("early")
    edges = graph.edges(scope)
    for part in edges.bundles(edges.scores()):
        assert part.mean().item() == pytest.approx(1, abs=1e-5)


def test_a_group_that_adders_feed_and_signs_read_has_a_norm_on_both_sides() -> None:
    nodes = build_network(mixed_spec()).graph.nodes["a"]
    assert [name for name, _ in nodes.named_children()] == ["norm", "act", "depthwise", "norm2"]


def test_a_mixed_network_learns_the_weights_of_all_its_operators() -> None:
    before, after = build_network(mixed_spec()), trained(mixed_spec())
    for bundle in after.spec.topology.bundles:
        old, new = before.graph.op(bundle.name).weight, after.graph.op(bundle.name).weight
        assert new.isfinite().all()
        assert not torch.equal(old, new), bundle.name


def test_the_cost_is_that_of_every_operators_live_edges() -> None:
    network = trained(mixed_spec())
    table = {row.name: row.cost for row in cost_table(network, whole=True)}
    positions, live = edge_positions(network), network.graph.live()
    for bundle in network.spec.topology.bundles:
        count = int(live[bundle.name].sum()) * positions[bundle.name]
        assert bundle.op is not None
        wanted = {"dense": "multiplications", "xnor": "xnors", "adder": "additions"}
        factor = 2 if bundle.op.name == "adder" else 1
        assert getattr(table[bundle.name], wanted[bundle.op.name]) == factor * count


def test_mixed_networks_compact_export_and_compile(tmp_path: Path) -> None:
    network, path = trained(mixed_spec()), tmp_path / "mixed.safetensors"
    small = compact(network)
    export(network, path)
    loaded = load_exported(path)
    compiled = wiring.compile(network, example=images(), cache=False)
    with torch.no_grad():
        expected = network(images())
        for form in (small, loaded, compiled):
            torch.testing.assert_close(form(images()), expected, rtol=1e-4, atol=1e-4)
    assert loaded.spec.op == MIXED
    assert {choice.op for choice in compiled.choices()} == {"dense", "xnor", "adder"}
    cost, header = total_cost(network), 8 + int.from_bytes(path.read_bytes()[:8], "little")
    payload, bits = 8 * (path.stat().st_size - header), cost.weight_bits + cost.index_bits
    assert bits <= payload < bits + 8 * len(small.spec.topology.bundles) + 8 * 3


def test_a_graph_of_mixed_edges_lists_operators_and_survives_graphml() -> None:
    network = trained(mixed_spec())
    topology, live = network.spec.topology, network.graph.live()
    weights = {name: network.graph.op(name).weight for name in live}
    graph = to_networkx(topology, live, weights)
    merged = [data for *_, data in graph.edges(data=True) if "," in data["op"]]
    assert merged
    for data in merged:
        names = data["bundle"].split(",")
        assert [name.rsplit("-", 1)[1] for name in names] == data["op"].split(",")
    back = from_graphml(to_graphml(graph))
    assert from_networkx(back) == topology
    found = live_from_networkx(back)
    assert all(torch.equal(found[name], live[name]) for name in live)


def test_two_bundles_of_one_operator_between_the_same_nodes_are_refused() -> None:
    dense = Component(name="dense")
    topology = Topology(
        groups=(NodeGroup(name="in", size=1), NodeGroup(name="out", size=1)),
        bundles=tuple(
            Bundle(name=n, sources=("in",), destination="out", op=dense) for n in ("e", "f")
        ),
        scopes=(Scope(name="s", bundles=("e", "f")),),
    )
    with pytest.raises(TopologyError, match="'e' and 'f' both join in:0 to out:0"):
        to_networkx(topology)


def test_options_reach_the_operator_they_are_named_for() -> None:
    op = Component.model_validate({"name": "mixed:dense,xnor", "xnor": {"input_scale": True}})
    model = mixed_spec(op)
    graph = build_network(model).graph
    assert graph.op("in-a-xnor").options.input_scale is True
    with pytest.raises(ConfigError, match="no operator 'adder' to take options"):
        operators(Component.model_validate({"name": "mixed:dense,xnor", "adder": {}}))


@pytest.mark.parametrize("name", ["mixed:dense", "mixed:dense,dense", "mixed:"])
def test_a_mix_takes_several_different_operators(name: str) -> None:
    with pytest.raises(ConfigError, match="takes several operators, each once"):
        operators(Component(name=name))


def test_an_unknown_operator_in_a_mix_is_named() -> None:
    with pytest.raises(UnknownNameError, match="denes"):
        operators(Component(name="mixed:denes,xnor"))


def test_unusable_entries_do_not_compete_for_cost() -> None:
    topology = mixed_topology()
    scopes = [scope.replace(unusable=3) for scope in topology.scopes]
    model = spec(topology.replace(scopes=scopes), MIXED)
    with pytest.raises(ConfigError, match="3 unusable entries"):
        apply_budget(model, None)
