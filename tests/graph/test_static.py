"""A static graph computes the sum over its live edges, however it is called."""

from __future__ import annotations

import pytest
import torch
from small_networks import (
    OPS,
    PAIRS,
    RULES,
    images,
    is_tied,
    mixed_topology,
    op_name,
    pair_name,
    spec,
    trained,
)
from torch import Tensor

from wiring.config import Component
from wiring.errors import TopologyError, UnknownNameError
from wiring.graph import Bundle, NodeGroup, Scope, Skip, Topology
from wiring.graph.driving import attach
from wiring.graph.static import StaticGraph
from wiring.network import build_network


def linear_topology(seed: int) -> Topology:
    """Four groups of random sizes without steps; every group reads all before it."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 6, (4,), generator=generator).tolist()
    groups = tuple(NodeGroup(name=f"g{i}", size=size) for i, size in enumerate(sizes))
    names = [group.name for group in groups]
    bundles = tuple(
        Bundle(name=f"e{i}", sources=tuple(names[:i]), destination=names[i]) for i in range(1, 4)
    )
    usable = sum(sizes[i] * sum(sizes[:i]) for i in range(1, 4))
    scope = Scope(name="all", bundles=("e1", "e2", "e3"), budget=max(1, usable // 2))
    skip = Skip(source="g0", destination="g3", nodes=(0,) * sizes[3])
    return Topology(groups=groups, bundles=bundles, scopes=(scope,), skips=(skip,))


def edge_by_edge(graph: StaticGraph, x: Tensor) -> Tensor:
    """What the definition says, one live edge at a time: I_v = Σ w_uv Z_u."""
    topology, live = graph.topology, graph.live()
    sums = {g.name: torch.zeros(len(x), g.size, *x.shape[2:]) for g in topology.groups}
    sums[topology.input.name] += x
    for group in topology.groups:
        for bundle in topology.bundles:
            if bundle.destination != group.name:
                continue
            nodes = [(n, i) for n in bundle.sources for i in range(topology.group(n).size)]
            for v, column, *_ in live[bundle.name].nonzero().tolist():
                name, u = nodes[column]
                sums[group.name][:, v] += graph.op(bundle.name).weight[v, column] * sums[name][:, u]
        for skip in topology.skips:
            if skip.destination == group.name:
                for v, u in enumerate(skip.reads(group.size)):
                    sums[group.name][:, v] += sums[skip.source][:, u]
    return sums[topology.output.name].detach()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("seeded")
def test_the_output_is_the_sum_over_live_edges(seed: int) -> None:
    graph = StaticGraph(linear_topology(seed), Component(name="dense"), Component(name="random"))
    x = torch.randn(2, graph.topology.input.size, 3, 3)
    torch.testing.assert_close(graph(x).detach(), edge_by_edge(graph, x))


@pytest.mark.usefixtures("seeded")
def test_a_skip_carries_the_sum_and_not_the_value() -> None:
    topology = Topology(
        groups=(NodeGroup(name="in", size=2, steps=("act",)), NodeGroup(name="out", size=1)),
        bundles=(Bundle(name="e", sources=("in",), destination="out"),),
        scopes=(Scope(name="s", bundles=("e",)),),
        skips=(Skip(source="in", destination="out", start=1),),
    )
    graph = StaticGraph(topology, Component(name="dense"), Component(name="complete"))
    x = -torch.rand(1, 2, 2, 2)
    torch.testing.assert_close(graph(x), x[:, 1:])


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.usefixtures("seeded")
def test_norm_and_strided_depthwise_are_pytorchs_own(norm: str) -> None:
    topology = Topology(
        groups=(
            NodeGroup(name="in", size=3, steps=("norm", "act", "depthwise"), norm=norm, stride=2),
            NodeGroup(name="out", size=2),
        ),
        bundles=(Bundle(name="e", sources=("in",), destination="out"),),
        scopes=(Scope(name="s", bundles=("e",)),),
    )
    graph = StaticGraph(topology, Component(name="dense"), Component(name="complete"))
    x = torch.randn(4, 3, 5, 5) * 3 + 1
    over = (0, 2, 3) if norm == "batch" else (2, 3)
    variance, mean = torch.var_mean(x, dim=over, keepdim=True, correction=0)
    z = ((x - mean) / (variance + 1e-5).sqrt()).relu()
    kernel = graph.nodes["in"].get_parameter("depthwise.weight")
    z = torch.nn.functional.conv2d(z, kernel, stride=2, padding=1, groups=3)
    expected = torch.einsum("vu,nuhw->nvhw", graph.op("e").weight[..., 0, 0], z)
    assert expected.shape == (4, 2, 3, 3)
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", OPS, ids=op_name)
def test_the_memory_layout_of_the_input_does_not_matter(op: Component) -> None:
    network = trained(spec(mixed_topology(), op))
    x = images(4)
    expected = network(x)
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), expected)
    spread = torch.empty(4, 3, 12, 24)[..., ::2].copy_(x)
    assert not spread.is_contiguous()
    torch.testing.assert_close(network(spread), expected)


@pytest.mark.parametrize("op", OPS, ids=op_name)
def test_an_image_scores_the_same_alone_and_in_a_batch(op: Component) -> None:
    network = trained(spec(mixed_topology(), op))
    x = images(3)
    alone = torch.cat([network(image[None]) for image in x])
    torch.testing.assert_close(alone, network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", OPS, ids=op_name)
def test_a_batch_of_one_can_be_trained_on(op: Component) -> None:
    network = build_network(spec(mixed_topology(), op)).train()
    network(images(1)).sum().backward()
    # Operators that train in stages have parameters that wait for a later one.
    waiting = {id(p) for staged in network.graph.staged for p in staged.parameters()}
    missing = {id(p) for p in network.parameters() if p.grad is None}
    assert missing <= waiting
    assert len(missing) < len(waiting) or not waiting
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(("op", "rule"), PAIRS, ids=pair_name)
def test_exactly_the_budget_lives_in_the_end_where_the_rule_promises_it(
    op: Component, rule: str
) -> None:
    network = trained(spec(mixed_topology(), op, rule))
    for name, scope in network.graph.wirings():
        if scope.rule.keeps_budget:
            assert scope.live.sum() == scope.rule.budget, name
        if rule == "complete":
            assert torch.equal(scope.live, scope.allowed), name
        assert not (scope.live & ~scope.allowed).any()
        assert not (scope.live & ~scope.learn()).any()


@pytest.mark.parametrize("op", [op for op in OPS if not is_tied(op)], ids=op_name)
def test_dead_edges_do_not_matter_whatever_they_weigh(op: Component) -> None:
    network = trained(spec(mixed_topology(), op))
    x, expected = images(), network(images())
    for bundle, live in network.graph.live().items():
        network.graph.op(bundle).weight.detach()[~live] = 1e6
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


def test_edges_outside_learn_receive_no_gradient() -> None:
    for rule in RULES:
        network = build_network(spec(mixed_topology(), "dense", rule)).train()
        network(images()).square().sum().backward()
        for bundle, learn in network.graph.learn().items():
            gradient = network.graph.op(bundle).weight.grad
            assert gradient is not None
            assert not gradient[~learn].any(), (rule, bundle)
            assert gradient[learn].any(), (rule, bundle)


def test_the_forward_pass_leaves_the_wiring_alone() -> None:
    network = build_network(spec(mixed_topology())).train()
    before = {name: scope.live.clone() for name, scope in network.graph.wirings()}
    with torch.no_grad():
        network.graph.op("in-a").weight.neg_().add_(1)
    network(images())
    assert all(torch.equal(before[n], scope.live) for n, scope in network.graph.wirings())
    network.graph.after_step()
    assert not torch.equal(before["early"], network.graph.scope("early").live)


def test_an_optimiser_step_rewires_attached_graphs() -> None:
    network = build_network(spec(mixed_topology())).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=5.0)
    attach(network, optimizer)
    before = network.graph.scope("early").live.clone()
    network(images()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, network.graph.scope("early").live)


def test_a_wrong_number_of_input_nodes_is_refused() -> None:
    graph = build_network(spec(mixed_topology())).graph
    with pytest.raises(TopologyError, match=r"takes \[N, 8, H, W\], got \[1, 3, 12, 12\]"):
        graph(images(1))


def test_an_unknown_operator_is_refused_with_near_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown edge operator 'dence'; did you mean dense"):
        build_network(spec(mixed_topology(), "dence"))


def test_the_same_seed_gives_the_same_network() -> None:
    states = [build_network(spec(mixed_topology(), "dense", "random"), seed=s) for s in (3, 3, 4)]
    first, second, other = (network.state_dict() for network in states)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["graph.scopes.early.live"], other["graph.scopes.early.live"])
