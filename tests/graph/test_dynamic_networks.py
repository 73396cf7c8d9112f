"""Whole networks over time: measured, compacted, exported, compiled, converted."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest
import torch
from dynamic_networks import EVERY, ROWS, cyclic_topology, dynamics_name, row_topology
from small_networks import (
    OPS,
    PAIRS,
    RULES,
    images,
    is_tied,
    op_name,
    pair_name,
    spec,
    trained,
)
from torch import Tensor, nn

from wiring.compact import compact
from wiring.compiled import compile
from wiring.config import Component, parse
from wiring.cost import Cost
from wiring.errors import TopologyError, WiringError
from wiring.export import export, load_exported
from wiring.graph.convert import (
    from_graphml,
    from_networkx,
    from_node_link,
    live_from_networkx,
    to_graphml,
    to_networkx,
    to_node_link,
)
from wiring.graph.costs import cost_table, total_cost
from wiring.graph.driving import attach
from wiring.graph.measure import constant_nodes, dead_nodes, depth, used_nodes
from wiring.graph.neural import NeuralGraph
from wiring.graph.resolutions import resolutions
from wiring.graph.topology import (
    Bundle,
    Continuous,
    Discrete,
    Dynamics,
    NodeGroup,
    Scope,
    Skip,
    Topology,
)
from wiring.network import ModelSpec, Network, StemSpec, build_network

OVER_TIME = pytest.mark.parametrize("dynamics", EVERY, ids=dynamics_name)


def rows_spec(op: Component | str = "dense", rule: str = "dnw") -> ModelSpec:
    return spec(row_topology(), op, rule, stem=StemSpec(kind="identity"))


@pytest.mark.parametrize(("op", "rule"), PAIRS, ids=pair_name)
def test_a_discrete_graph_keeps_its_function_when_compacted(op: Component, rule: str) -> None:
    network = trained(spec(cyclic_topology(Discrete(steps=2)), op, rule))
    small = compact(network)
    torch.testing.assert_close(small(images()), network(images()), rtol=1e-4, atol=1e-5)
    assert cost_table(network) == cost_table(small)
    if rule in ("dnw", "random") and "input_scale" not in op.options and not is_tied(op):
        assert dead_nodes(network.graph) > dead_nodes(small.graph)


@pytest.mark.parametrize("op", OPS, ids=op_name)
@pytest.mark.parametrize("dynamics", EVERY[1:], ids=dynamics_name)
def test_a_continuous_graph_keeps_its_function_when_compacted(
    op: Component, dynamics: Dynamics
) -> None:
    network = trained(spec(cyclic_topology(dynamics), op), steps=1)
    expected = network(images())
    small = compact(network)
    torch.testing.assert_close(small(images()), expected, rtol=1e-3, atol=1e-4)
    assert small.graph.passes == network.graph.passes > 0
    assert total_cost(network) == total_cost(small)
    assert depth(network.graph) == depth(small.graph)


@pytest.mark.parametrize("op", OPS, ids=op_name)
def test_a_graph_that_is_fed_rows_keeps_its_function_when_compacted(op: Component) -> None:
    network = trained(rows_spec(op), steps=1)
    small = compact(network)
    torch.testing.assert_close(small(images()), network(images()), rtol=1e-4, atol=1e-5)
    assert is_tied(op) or small.spec.topology.input.size == 36
    assert total_cost(network) == total_cost(small)


@OVER_TIME
@pytest.mark.parametrize("op", OPS, ids=op_name)
def test_an_exported_network_is_bit_equal_to_the_compacted_one(
    tmp_path: Path, op: Component, dynamics: Dynamics
) -> None:
    model = spec(cyclic_topology(dynamics), op)
    instance = [g.replace(norm="instance").to_dict() for g in model.topology.groups]
    model = model.replace(topology=model.topology.replace(groups=instance))
    network = trained(model, steps=1)
    export(network, tmp_path / "network.safetensors")
    loaded = load_exported(tmp_path / "network.safetensors")
    assert torch.equal(loaded(images()), compact(network)(images()))
    assert loaded.spec.topology.dynamics == dynamics


@pytest.mark.parametrize("op", OPS, ids=op_name)
@pytest.mark.parametrize("feed", ["start", "rows"])
def test_a_compiled_discrete_graph_is_the_same_function(op: Component, feed: str) -> None:
    model = rows_spec(op) if feed == "rows" else spec(cyclic_topology(Discrete(steps=3)), op)
    network = trained(model, steps=1)
    compiled = compile(network, cache=False)
    for count in (1, 6):
        expected = network(images(count))
        torch.testing.assert_close(compiled(images(count)), expected, rtol=1e-4, atol=1e-5)
    names = {choice.bundle.rpartition("-")[0] for choice in compiled.choices()}
    assert names == {bundle.name for bundle in network.spec.topology.bundles}
    # Of the last step nothing runs but what leads to the output.
    last = max(int(choice.bundle.rpartition("-")[2]) for choice in compiled.choices())
    assert last == network.graph.passes
    assert [c.bundle for c in compiled.choices() if c.bundle.endswith(f"-{last}")] == [
        f"{b.name}-{last}" for b in network.spec.topology.bundles if b.destination == "out"
    ]


def test_a_form_can_be_pinned_for_all_copies_of_a_bundle() -> None:
    network = trained(spec(cyclic_topology(Discrete(steps=3))), steps=1)
    compiled = compile(network, cache=False, kernels={"to-in": "eager"})
    forms = {choice.kernel for choice in compiled.choices() if choice.bundle.startswith("to-in-")}
    assert forms == {"eager"}


def test_a_graph_in_continuous_time_says_what_to_do_instead_of_compiling() -> None:
    network = build_network(spec(cyclic_topology(Continuous())))
    with pytest.raises(WiringError, match=r"cannot be compiled.*compact\.compact"):
        compile(network)


def ring(dynamics: Dynamics, *, size: int = 3, skip: bool = False) -> NeuralGraph:
    """in → a → b → out, b → a, one node each; all edges live."""
    names = ("in", "a", "b", "out")
    joins = (("in", "a"), ("a", "b"), ("b", "a"), ("b", "out"))
    topology = Topology(
        groups=tuple(NodeGroup(name=name, size=1, receive=("norm",)) for name in names),
        bundles=tuple(Bundle(name=f"{u}{v}", sources=(u,), destination=v) for u, v in joins),
        scopes=(Scope(name="s", bundles=tuple(f"{u}{v}" for u, v in joins)),),
        skips=(Skip(source="in", destination="in"),) if skip else (),
        dynamics=dynamics,
    )
    return build_network(spec(topology, "dense", "complete")).graph


@pytest.mark.parametrize(
    ("steps", "skip", "edges"),
    [(2, False, 0), (3, False, 3), (4, False, 0), (5, False, 5), (4, True, 3), (6, True, 5)],
)
def test_depth_is_the_longest_walk_that_brings_the_start_to_the_output_in_time(
    steps: int, skip: bool, edges: int
) -> None:
    assert depth(ring(Discrete(steps=steps), skip=skip)) == edges


def test_in_continuous_time_walks_have_as_many_edges_as_the_solver_evaluates() -> None:
    assert depth(ring(Continuous(solver="euler", step_size=0.5))) == 0
    assert depth(ring(Continuous(solver="euler", step_size=0.2))) == 5
    assert depth(ring(Continuous())) == 0  # nothing was solved yet


def test_a_node_is_used_if_a_walk_leads_from_it_to_an_output_in_time() -> None:
    def used(steps: int, *dead: str) -> set[str]:
        graph = ring(Discrete(steps=steps))
        for name in dead:
            graph.live()[name].zero_()
        return {name for name, mask in used_nodes(graph).items() if mask.any()}

    assert used(1) == {"b", "out"}
    assert used(2) == {"a", "b", "out"}
    assert used(3) == {"in", "a", "b", "out"}
    assert used(9, "ab") == {"b", "out"}
    assert constant_nodes(ring(Discrete(steps=2))) == 1  # the output sees nothing of the input


@OVER_TIME
def test_an_edge_costs_once_per_pass_and_weighs_once(dynamics: Dynamics) -> None:
    network = trained(spec(cyclic_topology(dynamics), "dense", "complete"), steps=0)
    network(images())
    calls: dict[str, int] = {}

    def count(name: str, module: nn.Module) -> None:
        def hook(*_: object) -> None:
            calls[name] = calls.get(name, 0) + 1

        module.register_forward_hook(hook)

    for bundle in network.spec.topology.bundles:
        count(bundle.name, network.graph.op(bundle.name))
    network(images())
    passes = network.graph.passes
    assert calls["to-out"] == passes
    rows = {row.name: row.cost for row in cost_table(network)}

    def moves(values: int) -> Cost:
        return Cost(activation_bits=32 * passes * values)

    products = passes * 360 * 144
    # 12 destinations read 30 sources.
    edges = Cost(products, products, weight_bits=360 * 32) + moves((30 + 12) * 144)
    assert rows["to-in"] == edges
    values = passes * 12 * 144
    through = moves(2 * 12 * 144)
    assert rows["in.norm"] == Cost(2 * values, 3 * values, weight_bits=12 * 64) + through
    depthwise = Cost(9 * values, 9 * values, weight_bits=12 * 9 * 32)
    assert rows["in.depthwise"] == depthwise + through
    bias = Cost(0, passes * 4 * 144, weight_bits=4 * 32)
    assert rows["out.bias"] == bias + moves(2 * 4 * 144)


def test_the_passes_of_an_adaptive_solver_are_those_of_a_normal_image_until_it_has_solved() -> None:
    network = build_network(spec(cyclic_topology(Continuous())))
    first = total_cost(network)
    assert first == total_cost(network)
    assert network.graph.passes == 0
    assert network.training
    network.eval()(images())
    edges = next(row.cost for row in cost_table(network) if row.name == "to-out")
    assert edges.multiplications == network.graph.passes * 9 * 144


@OVER_TIME
def test_all_groups_have_the_resolution_of_the_input(dynamics: Dynamics) -> None:
    graph = build_network(spec(cyclic_topology(dynamics))).graph
    assert {side for sides in resolutions(graph, (5, 7)).values() for side in sides} == {(5, 7)}
    rows = build_network(rows_spec()).graph
    assert {side for sides in resolutions(rows, (12, 12)).values() for side in sides} == {(1, 1)}


@OVER_TIME
def test_a_topology_with_cycles_comes_back_from_graph_files_with_its_live_edges(
    dynamics: Dynamics,
) -> None:
    network = build_network(spec(cyclic_topology(dynamics, budgets=(60, 9)), rule="random"))
    topology, live = network.spec.topology, network.graph.live()
    graph = to_networkx(topology, live)
    assert not nx.is_directed_acyclic_graph(graph)
    for back in (graph, from_node_link(to_node_link(graph)), from_graphml(to_graphml(graph))):
        assert from_networkx(back) == topology
        masks = live_from_networkx(back)
        assert all(torch.equal(masks[name], mask) for name, mask in live.items())
    assert parse(Topology, topology.to_dict()) == topology
    assert topology.digest() != cyclic_topology(Discrete(steps=7)).digest()


def test_a_foreign_graph_with_a_cycle_is_refused_as_before() -> None:
    with pytest.raises(TopologyError, match="a static graph has no cycle"):
        from_networkx(nx.DiGraph([("a", "b"), ("b", "a"), ("b", "c")]))


@OVER_TIME
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains_a_graph_over_time(dynamics: Dynamics, rule: str) -> None:
    network = trained(spec(cyclic_topology(dynamics), "dense", rule))
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    for _, wiring in network.graph.wirings():
        assert not (wiring.live & ~wiring.allowed).any()


def test_a_training_that_is_broken_off_goes_on_to_the_same_numbers() -> None:
    def begin() -> tuple[Network, torch.optim.Optimizer]:
        network = build_network(spec(cyclic_topology(Continuous()))).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        attach(network, optimizer)
        return network, optimizer

    def step(network: Network, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = network(images()).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    whole, broken = begin(), begin()
    step(*whole)
    step(*broken)
    resumed = begin()
    resumed[0].load_state_dict(broken[0].state_dict())
    resumed[1].load_state_dict(broken[1].state_dict())
    assert torch.equal(step(*whole), step(*resumed))
    states = whole[0].state_dict(), resumed[0].state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_rows_are_as_many_as_the_images_have() -> None:
    assert build_network(rows_spec())(images()).shape == (6, 3)
    with pytest.raises(TopologyError, match="one step per row"):
        build_network(spec(row_topology(ROWS - 1), stem=StemSpec(kind="identity")))(images())
