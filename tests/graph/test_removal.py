"""Nodes that a rule removes are gone, and nothing else has changed."""

from __future__ import annotations

import copy

import pytest
import torch
from dynamic_networks import cyclic_topology
from small_networks import images, mixed_topology, spec, trained
from torch import Tensor

from wiring.compact import cut_nodes
from wiring.config import Component
from wiring.errors import WiringError
from wiring.graph import Bundle, NodeGroup, Scope, Topology
from wiring.graph.driving import attach
from wiring.graph.measure import live_edges
from wiring.graph.node_rules import NODE_RULES, NodeRule, Nodes
from wiring.graph.topology import Discrete
from wiring.network import Network, build_network
from wiring.removal import left_whole, remove_nodes, shrink_nodes


class OddGo(NodeRule):
    """Every other node goes."""

    def select(self, nodes: Nodes, generator: torch.Generator) -> Tensor:
        return torch.arange(nodes.size) % 2 == 0


class OddMove(OddGo):
    """Every other node goes, and the one before it takes over."""

    def transfer(self, nodes: Nodes, kept: Tensor) -> Tensor:
        whole = torch.eye(nodes.size, dtype=nodes.incoming.dtype)
        return whole[torch.arange(nodes.size) // 2 * 2][:, kept]


class OddSpread(OddGo):
    """Every other node goes, and all others inherit some of it, each another part."""

    def transfer(self, nodes: Nodes, kept: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        spread = torch.rand(nodes.size, int(kept.sum()), generator=generator, dtype=torch.float64)
        spread[kept] = torch.eye(int(kept.sum()), dtype=torch.float64)
        return spread


def chain(budget: int | None = None, steps: tuple[str, ...] = ("norm", "act")) -> Topology:
    """in 6 → a 8 → b 6 → out 4, and in → b beside a: joined sources, two kernels."""
    groups = [
        NodeGroup(name="in", size=6, steps=("norm",)),
        NodeGroup(name="a", size=8, steps=steps, stage=1),
        NodeGroup(name="b", size=6, steps=("bias", "act", "depthwise"), stage=2),
        NodeGroup(name="out", size=4, stage=3),
    ]
    bundles = [
        Bundle(name="in-a", sources=("in",), destination="a", kernel=(3, 3), padding=1),
        Bundle(name="ina-b", sources=("in", "a"), destination="b"),
        Bundle(name="a-out", sources=("a",), destination="out", kernel=(3, 3), padding=1),
        Bundle(name="b-out", sources=("b",), destination="out"),
    ]
    if "depthwise" in steps:
        groups[1] = groups[1].replace(stride=1)
    return Topology(
        groups=tuple(groups),
        bundles=tuple(bundles),
        scopes=(
            Scope(name="early", bundles=("in-a", "ina-b"), budget=budget),
            Scope(name="late", bundles=("a-out", "b-out"), budget=budget),
        ),
    )


def network_of(op: str = "dense", rule: str = "dnw", budget: int | None = None) -> Network:
    model = spec(chain(budget, ("norm", "act", "depthwise")), op, rule)
    return trained(model).double()


def sizes(network: Network) -> dict[str, int]:
    return {group.name: group.size for group in network.spec.topology.groups}


def batches() -> list[Tensor]:
    return [images(seed=seed).double() for seed in (1, 2)]


def silenced(network: Network) -> Network:
    """A copy in which what leaves odd nodes of `a` and `b` weighs nothing."""
    network = copy.deepcopy(network)
    live = network.graph.live()
    for name, first, size in (("ina-b", 6, 8), ("a-out", 0, 8), ("b-out", 0, 6)):
        live[name][:, first + 1 : first + size : 2] = False
    return network


def duplicate(network: Network, group: str, source: int, copies: list[int]) -> None:
    """Make nodes of a group equal to another one, in all they have."""
    with torch.no_grad():
        for bundle in network.spec.topology.bundles:
            if bundle.destination == group:
                weight, live = network.graph.op(bundle.name).weight, network.graph.live()
                weight[copies] = weight[source].clone()
                live[bundle.name][copies] = live[bundle.name][source].clone()
        for tensor in network.graph.nodes[group].state_dict().values():
            if tensor.dim():
                tensor[copies] = tensor[source].clone()


@pytest.mark.parametrize("op", ["dense", "bwn", "adder", "xnor"])
@pytest.mark.parametrize("budget", [None, 60])
def test_a_removed_node_says_nothing_to_its_readers_and_changes_no_other(
    op: str, budget: int | None
) -> None:
    network = network_of(op, budget=budget)
    small, report = remove_nodes(network, OddGo(), batches())
    assert sizes(small) == {"in": 6, "a": 4, "b": 3, "out": 4}
    assert [row.after for row in report.groups] == [6, 4, 3, 4]
    assert report.removed == 7
    x = images().double()
    torch.testing.assert_close(small(x), silenced(network)(x))
    assert not torch.allclose(small(x), network(x))
    rows = live_edges(small.graph), sum(scope.budget or 0 for scope in small.spec.topology.scopes)
    assert budget is None or rows[0] == rows[1]


@pytest.mark.parametrize("budget", [None, 70])
@pytest.mark.parametrize("rule", ["merge", "dpp"])
def test_nodes_that_compute_the_same_merge_without_a_trace(rule: str, budget: int | None) -> None:
    network = network_of(budget=budget)
    for heir in (0, 2, 4):
        duplicate(network, "a", heir, [heir + 1])
    duplicate(network, "a", 6, [7])
    duplicate(network, "b", 0, [3, 5])
    duplicate(network, "b", 1, [4])
    x = images().double()
    before = network(x)
    made = NODE_RULES.get(rule)({"share": 0.5} if rule == "merge" else {"epsilon": 1e-9})
    small, _ = remove_nodes(network, made, batches())
    assert sizes(small)["a"] == 4
    assert sizes(small)["b"] == 3
    torch.testing.assert_close(small(x), before, rtol=1e-6, atol=1e-6)
    assert live_edges(small.graph) <= live_edges(network.graph)


def test_equal_weights_behind_different_norms_are_different_nodes() -> None:
    network = network_of()
    duplicate(network, "a", 2, [3])
    duplicate(network, "a", 5, [6])
    with torch.no_grad():
        norm = network.graph.nodes["a"].norm
        norm.running_mean[[5, 6]] = norm.bias[[5, 6]] = 0
        norm.weight[6] *= -1
    made = NODE_RULES.get("merge")({"share": 0.125})
    small, _ = remove_nodes(network, made, batches())
    stay = [0, 1, 2, 4, 5, 6, 7]
    weight = network.graph.op("in-a").weight[stay]
    assert torch.equal(small.graph.op("in-a").weight, weight)


def test_least_squares_keeps_more_of_the_function_than_plain_removal() -> None:
    network = network_of()
    x = images().double()
    fused, _ = remove_nodes(network, NODE_RULES.get("dpp")({"share": 0.25}), batches(), seed=1)
    kept = {g.name: torch.ones(g.size, dtype=torch.bool) for g in network.spec.topology.groups}
    weights = network.graph.op("in-a").weight
    stay = fused.graph.op("in-a").weight
    kept["a"] = (weights[:, None] == stay[None]).flatten(2).all(2).any(1)
    assert int(kept["a"].sum()) == 6
    plain = cut_nodes(network, kept)
    errors = [(small(x) - network(x)).square().mean().item() for small in (fused, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_what_inherits_weight_comes_to_life_but_never_more_edges_than_lived() -> None:
    network = network_of(budget=40)
    live = network.graph.live()["b-out"]
    live.zero_()
    live[:, 1] = True  # only node 1 is heard, and it goes: node 0 takes its edges over
    small, _ = remove_nodes(network, OddMove(), batches())
    found = small.graph.live()["b-out"][:, :, 0, 0]
    assert found[:, 0].all()
    assert int(found.sum()) == 4
    weight = network.graph.op("b-out").weight[:, 1]
    torch.testing.assert_close(small.graph.op("b-out").weight[:, 0], weight)


def test_of_many_heirs_the_strongest_live() -> None:
    network = network_of(budget=40)
    before = {name: int(mask.sum()) for name, mask in network.graph.live().items()}
    small, _ = remove_nodes(network, OddSpread(), batches())
    after = {name: int(mask.sum()) for name, mask in small.graph.live().items()}
    assert all(after[name] <= before[name] for name in ("a-out", "b-out"))
    assert after["a-out"] == min(before["a-out"], small.graph.live()["a-out"].numel())
    live, weight = small.graph.live()["a-out"], small.graph.op("a-out").weight.abs()
    assert bool((weight[live] > 0).all())


def test_groups_coupled_by_a_skip_stay_whole_and_the_report_says_why() -> None:
    network = trained(spec(mixed_topology()))
    small, report = remove_nodes(network, OddGo(), [images()])
    reasons = {row.name: row.reason for row in report.groups}
    assert reasons == {
        "in": "takes the input",
        "a": "a skip couples its nodes with those of 'b'",
        "b": "a skip couples its nodes with those of 'a'",
        "c": "",
        "out": "is read out",
    }
    assert sizes(small) == {"in": 8, "a": 7, "b": 5, "c": 3, "out": 4}
    assert report.lines()[3] == "c: 6 → 3"


def test_operators_that_are_not_linear_in_their_weights_take_nothing_over() -> None:
    network = network_of("xnor")
    small, report = remove_nodes(network, NODE_RULES.get("merge")({}), batches())
    assert report.removed == 0
    assert "Xnor in bundle 'ina-b' is not linear in its weights" in report.groups[1].reason
    assert sizes(small) == sizes(network)
    assert not left_whole(network, NODE_RULES.get("apoz")({}))["a"]


def test_edges_that_share_parameters_keep_their_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of()
    monkeypatch.setattr(type(network.graph.op("in-a")), "tied", True)
    _, report = remove_nodes(network, OddGo(), batches())
    assert report.groups[1].reason == "the edges of Dense in bundle 'in-a' share parameters"


def test_a_scope_that_would_lose_its_last_edge_keeps_the_nodes() -> None:
    network = network_of(budget=40)
    for name, mask in network.graph.live().items():
        if name in ("a-out", "b-out"):
            mask.zero_()
    network.graph.live()["a-out"][0, 1] = True
    _, report = remove_nodes(network, OddGo(), batches())
    assert report.groups[1].reason == "scope 'late' would be left without a live edge"


def test_a_graph_over_time_loses_nodes_too() -> None:
    topology = cyclic_topology(Discrete(steps=3), budgets=(120, 60)).replace(skips=[])
    network = trained(spec(topology))
    small, report = remove_nodes(network, OddGo(), [images()])
    assert report.removed > 0
    assert small(images()).shape == network(images()).shape


def test_budgets_of_rules_that_train_the_complete_graph_shrink_in_proportion() -> None:
    network = build_network(spec(chain(80), "dense", "magnitude"))
    small, _ = remove_nodes(network, OddGo(), [images()], trains=True)
    budgets = [scope.budget for scope in small.spec.topology.scopes]
    usable = [small.spec.topology.usable_edges(scope) for scope in small.spec.topology.scopes]
    whole = [network.spec.topology.usable_edges(scope) for scope in network.spec.topology.scopes]
    assert budgets == [round(80 * u / w) for u, w in zip(usable, whole, strict=True)]
    assert all(bool(wiring.live.all()) for _, wiring in small.graph.wirings())


def test_what_is_left_trains_on_and_the_original_is_as_it_was() -> None:
    network = network_of(budget=60)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    small, _ = remove_nodes(network, OddMove(), batches(), trains=True)
    assert all(torch.equal(t, network.state_dict()[n]) for n, t in before.items())
    optimizer = torch.optim.SGD(small.train().parameters(), lr=0.1)
    attach(small, optimizer)
    small(images().double()).square().sum().backward()
    optimizer.step()
    for scope, wiring in zip(small.spec.topology.scopes, small.graph.wirings(), strict=True):
        assert int(wiring[1].live.sum()) == scope.budget


def test_shrinking_takes_live_weights_of_free_nodes_towards_zero_and_leaves_dead_ones() -> None:
    network = network_of(budget=60)
    rule = NODE_RULES.get("ssl")({"penalty": 1e6})
    dead = {n: ~mask for n, mask in network.graph.live().items()}
    before = {n: network.graph.op(n).weight.clone() for n in dead}
    shrink_nodes(network, rule, 0.1)
    for name, mask in dead.items():
        weight = network.graph.op(name).weight
        assert torch.equal(weight[mask], before[name][mask])
        assert bool((weight[~mask] == 0).all()) == (name in ("in-a", "ina-b"))


def test_a_rule_that_keeps_nothing_and_missing_images_are_refused() -> None:
    class NobodyStays(NodeRule):
        def select(self, nodes: Nodes, generator: torch.Generator) -> Tensor:
            return torch.zeros(nodes.size, dtype=torch.bool)

    with pytest.raises(WiringError, match="NobodyStays keeps no node of group 'a'"):
        remove_nodes(network_of(), NobodyStays(), batches())
    with pytest.raises(WiringError, match="give it images"):
        remove_nodes(network_of(), OddGo(), [])


def test_the_same_seed_removes_the_same_nodes() -> None:
    network = trained(spec(chain(), Component(name="dense"), "dnw"))
    rule = NODE_RULES.get("dpp")({})
    states = [remove_nodes(network, rule, [images()], seed=s)[0].state_dict() for s in (3, 3, 4)]
    assert all(torch.equal(t, states[1][n]) for n, t in states[0].items())
    assert any(not torch.equal(t, states[2][n]) for n, t in states[0].items())
