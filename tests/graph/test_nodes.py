"""What nodes do with their sums, step by step: values, cost, resolution, export, compilation."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_networks import OPS, SIDE, images, op_name, spec, trained
from torch import Tensor

from wiring.compact import compact
from wiring.compiled import compile as compile_network
from wiring.config import Component
from wiring.cost import Cost
from wiring.errors import TopologyError
from wiring.export import export, load_exported, stored_tensors
from wiring.graph.costs import CostRow, cost_table, total_cost
from wiring.graph.measure import constant_nodes, depth, used_nodes
from wiring.graph.nodes import NodeOp
from wiring.graph.resolutions import resolutions
from wiring.graph.topology import Bundle, NodeGroup, Scope, Skip, Step, Topology, Window
from wiring.network import HeadSpec, Network, StemSpec, build_network

IDENTITY = StemSpec(kind="identity")
WINDOW = Window(size=3, stride=2, padding=1)


def every_step(*, budget: int = 40) -> Topology:
    """Each step once at least, twice some; skips of sums and of values, one of them gated; a group
    without bundles."""
    return Topology(
        groups=(
            NodeGroup(name="in", size=3),
            NodeGroup(name="a", size=6, steps=("bias", "act", "maxpool"), window=WINDOW, stage=1),
            NodeGroup(
                name="b",
                size=6,
                steps=("norm", "tanh", "depthwise", "norm", "act", "dropout"),
                dropout=0.3,
                stage=2,
            ),
            NodeGroup(name="short", size=6, steps=("bias", "norm"), stage=2),
            NodeGroup(name="join", size=6, steps=("act", "avgpool"), window=Window(), stage=3),
            NodeGroup(name="narrow", size=4, steps=("bias",), stage=4),
            NodeGroup(name="out", size=4, steps=("bias", "pool"), stage=5),
        ),
        bundles=(
            Bundle(name="in-a", sources=("in",), destination="a", kernel=(3, 3), padding=1),
            Bundle(name="a-b", sources=("a",), destination="b", kernel=(3, 3), padding=1),
            Bundle(name="a-short", sources=("a",), destination="short"),
            Bundle(name="join-narrow", sources=("join",), destination="narrow"),
            Bundle(name="narrow-out", sources=("narrow",), destination="out"),
        ),
        scopes=(
            Scope(name="first", bundles=("in-a", "a-b"), budget=budget),
            Scope(name="rest", bundles=("a-short", "join-narrow", "narrow-out"), budget=20),
        ),
        skips=(
            Skip(source="b", destination="join", carries="value"),
            Skip(source="short", destination="join", carries="value", gate=True),
            Skip(source="short", destination="join", carries="sum"),
            Skip(source="join", destination="narrow", carries="value", start=1),
            Skip(source="join", destination="out", carries="value", nodes=(5, 0, 0, 2)),
        ),
    )


def network(op: Component | str = "dense", rule: str = "random") -> Network:
    model = spec(every_step(), op, rule, stem=IDENTITY, head=HeadSpec(kind="none"))
    result = trained(model)
    with torch.no_grad():
        for gate in result.graph.gates.parameters():
            gate.fill_(0.7)
    return result


def rows(network: Network) -> dict[str, CostRow]:
    return {row.name: row for row in cost_table(network)}


# -- values --------------------------------------------------------------------------------


def nodes(*steps: Step, **fields: object) -> NodeOp:
    group = NodeGroup.model_validate({"name": "g", "size": 5, "steps": steps, **fields})
    return NodeOp(group, group.steps).eval()


X = torch.randn(2, 5, 7, 7, generator=torch.Generator().manual_seed(0))


def test_a_bias_adds_a_constant_per_node() -> None:
    op = nodes("bias")
    constants = torch.arange(5.0)
    op.load_state_dict({"bias.bias": constants})
    assert torch.equal(op(X), X + constants.view(5, 1, 1))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("tanh", X.tanh()),
        ("maxpool", F.max_pool2d(X, 3, 2, 1)),
        ("avgpool", F.avg_pool2d(X, 3, 2, 1)),
        ("pool", X.mean(dim=(2, 3), keepdim=True)),
        ("dropout", X),
    ],
)
def test_a_step_computes_what_it_is_called_after(step: Step, expected: Tensor) -> None:
    torch.testing.assert_close(nodes(step, window=WINDOW.to_dict())(X), expected)


def test_dropout_zeroes_its_share_in_training() -> None:
    torch.manual_seed(0)
    y = nodes("dropout", dropout=0.3).train()(torch.ones(100, 5, 7, 7))
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert y.mean().item() == pytest.approx(1, abs=0.02)


def test_a_step_that_comes_twice_has_weights_of_its_own_and_a_number() -> None:
    op = nodes("norm", "act", "depthwise", "norm", "act")
    assert [name for name, _ in op.named_children()] == [
        "norm",
        "act",
        "depthwise",
        "norm2",
        "act2",
    ]
    assert {"norm.weight", "norm2.weight", "depthwise.weight"} <= set(op.state_dict())


def test_skips_carry_sums_or_values_and_gates_weigh_all_of_them() -> None:
    graph = network().graph
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("b", "short", "join"):
        graph.nodes[name].register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
    graph(images())
    gate = torch.tensor(0.7).sigmoid()
    expected = seen["b"][1] + gate * seen["short"][1] + seen["short"][0]
    torch.testing.assert_close(seen["join"][0], expected)


def test_a_gate_in_a_graph_over_time_is_refused() -> None:
    plain = {
        "groups": ({"name": "a", "size": 2}, {"name": "b", "size": 2}),
        "bundles": ({"name": "ab", "sources": ("a",), "destination": "b"},),
        "scopes": ({"name": "s", "bundles": ("ab",)},),
        "skips": ({"source": "a", "destination": "b", "gate": True},),
    }
    Topology.model_validate(plain)
    with pytest.raises(TopologyError, match="into 'b' has a gate"):
        Topology.model_validate({**plain, "dynamics": {"kind": "discrete"}})


# -- measures ------------------------------------------------------------------------------


def test_resolutions_follow_windows_and_the_end_that_a_skip_reads() -> None:
    sides = resolutions(network().graph, (SIDE, SIDE))
    assert sides["a"] == ((12, 12), (12, 12), (12, 12), (6, 6))
    assert sides["join"] == ((6, 6), (6, 6), (3, 3))
    assert sides["out"] == ((3, 3), (3, 3), (1, 1))


def test_a_skip_of_a_value_that_meets_another_resolution_is_refused() -> None:
    topology = every_step()
    skips = [skip.replace(carries="sum") for skip in topology.skips if skip.source == "join"]
    broken = topology.replace(skips=[one.to_dict() for one in (*topology.skips[:3], *skips)])
    graph = build_network(spec(broken, stem=IDENTITY, head=HeadSpec(kind="none"))).graph
    with pytest.raises(TopologyError, match="'narrow' receives sums of resolutions"):
        resolutions(graph, (SIDE, SIDE))


def test_the_cost_of_each_step_is_what_the_table_promises() -> None:
    model = spec(every_step(), "dense", "complete", stem=IDENTITY, head=HeadSpec(kind="none"))
    found = rows(build_network(model))

    def moves(values: int) -> Cost:
        return Cost(activation_bits=32 * values)

    assert found["a.bias"].cost == Cost(additions=864, weight_bits=6 * 32) + moves(2 * 864)
    assert found["a.maxpool"].cost == moves(6 * 144 + 6 * 36)
    assert found["join.avgpool"].cost == Cost(additions=6 * 9 * 3) + moves(6 * 36 + 6 * 9)
    assert found["out.pool"].cost == Cost(additions=4 * 8) + moves(4 * 9 + 4)
    assert found["join.short"].cost == Cost(216, 216, weight_bits=32) + moves(2 * 216)
    assert found["join.short"].kind == "gate"
    norms = [row for row in cost_table(build_network(model)) if row.name == "b.norm"]
    assert [row.cost.multiplications for row in norms] == [6 * 36, 6 * 36]
    counted = {row.kind for row in found.values()}
    assert counted.isdisjoint({"act", "tanh", "dropout", "skip"})


def test_a_skip_keeps_the_nodes_it_reads_in_use_and_adds_no_depth() -> None:
    topology = every_step()
    narrow = topology.replace(
        skips=[skip.to_dict() for skip in topology.skips[:3]],
        scopes=[{**scope.to_dict(), "budget": None} for scope in topology.scopes],
    )
    graph = build_network(spec(narrow, stem=IDENTITY, head=HeadSpec(kind="none"))).graph
    live = graph.scope("rest").split(graph.scope("rest").live)
    live["join-narrow"].zero_()
    live["join-narrow"][:, 4] = True
    used = used_nodes(graph)
    for group in ("b", "short", "join"):
        assert used[group].nonzero().flatten().tolist() == [4]
    assert depth(graph) == 4  # in, a, b, (join), narrow, out
    assert constant_nodes(graph) == 0


# -- the same function in every form -------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=op_name)
def test_compaction_keeps_the_function(op: Component) -> None:
    full = network(op)
    small = compact(full)
    torch.testing.assert_close(small(images()), full(images()))
    sizes = [sum(g.size for g in one.spec.topology.groups) for one in (small, full)]
    assert sizes[0] <= sizes[1]
    assert total_cost(small) == total_cost(full)


@pytest.mark.parametrize("op", OPS, ids=op_name)
def test_an_export_comes_back_and_is_as_large_as_the_cost_says(
    op: Component, tmp_path: Path
) -> None:
    full = network(op)
    export(full, tmp_path / "network")
    torch.testing.assert_close(load_exported(tmp_path / "network")(images()), full(images()))
    tensors = stored_tensors(compact(full)).values()
    bits = sum(tensor.numel() * tensor.element_size() * 8 for tensor in tensors)
    cost = total_cost(full)
    assert 0 <= bits - cost.weight_bits - cost.index_bits < 8 * len(tensors)


@pytest.mark.parametrize("op", OPS, ids=op_name)
@pytest.mark.parametrize("form", [0, -1], ids=["first form", "last form"])
def test_a_compiled_network_computes_what_evaluation_does(
    op: Component, form: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank(forms: dict[str, object]) -> dict[str, float]:
        chosen = list(forms)[form]
        return {name: float(name != chosen) for name in forms}

    monkeypatch.setattr("wiring.compiled.forms.measure", rank)
    monkeypatch.setattr("wiring.compiled.network.measure", rank)
    full = network(op)
    with torch.no_grad():
        expected = full(images())
    found = compile_network(full, cache=False)(images())
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


def test_bits_in_front_of_a_sensitive_operator_are_those_of_evaluation() -> None:
    model = spec(every_step(), "xnor", "random", stem=IDENTITY, head=HeadSpec(kind="none"))
    topology = model.topology
    # Behind the last binary layer nothing is left that may be summed in another order.
    last = topology.output.replace(steps=("pool",))
    topology = topology.replace(groups=[g.to_dict() for g in (*topology.groups[:-1], last)])
    full = trained(model.model_copy(update={"topology": topology}))
    with torch.no_grad():
        assert torch.equal(compile_network(full, cache=False)(images()), full(images()))


def test_a_compiled_network_leaves_dropout_out_and_its_input_alone() -> None:
    compiled = compile_network(network(), cache=False)
    assert not any("dropout" in step for step in compiled.steps())
    assert {"gate", "maxpool2d", "avgpool2d"} <= set(compiled.steps())
    x = images()
    before = x.clone()
    first = compiled(x)
    assert torch.equal(x, before)
    assert torch.equal(compiled(x), first)
    assert math.isfinite(float(first.sum()))
