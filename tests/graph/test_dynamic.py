"""Graphs over time compute what their definition says, and so do their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dynamic_networks import (
    CONTINUOUS,
    by_nodes,
    cyclic_topology,
    dynamics_name,
    graph_of,
    plain_topology,
    row_topology,
    start,
)
from torch import Tensor

from wiring.config import Component
from wiring.errors import BudgetError, SolverError, TopologyError
from wiring.graph.build import build_graph
from wiring.graph.dynamic import FIXED, ContinuousGraph, DynamicGraph
from wiring.graph.topology import Bundle, Continuous, Discrete, NodeGroup, Scope, Topology

SMOOTH = ("norm", "tanh")


def inputs(graph: DynamicGraph, side: int = 4, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    size = (count, graph.topology.input.size, side, side)
    return torch.randn(size, dtype=torch.float64, generator=generator)


def naive(graph: DynamicGraph, x: Tensor, steps: int) -> Tensor:
    states = start(graph, x)
    for _ in range(steps):
        states = by_nodes(graph, states, None)
    return states[graph.topology.output.name]


def naive_rows(graph: DynamicGraph, x: Tensor) -> Tensor:
    rows = [x[:, :, t].reshape(len(x), -1, 1, 1) for t in range(x.shape[2])]
    states = start(graph, torch.zeros_like(rows[0]))
    for row in rows:
        states = by_nodes(graph, states, row)
    return states[graph.topology.output.name]


def naive_euler(graph: DynamicGraph, x: Tensor, steps: int, time: float) -> Tensor:
    states = start(graph, x)
    for _ in range(steps):
        changes = by_nodes(graph, states, None)
        states = {name: s + time / steps * changes[name] for name, s in states.items()}
    return states[graph.topology.output.name]


def gradients(y: Tensor, graph: DynamicGraph) -> dict[str, Tensor]:
    """Of Σ y·c by parameter, with c that differs from output to output."""
    generator = torch.Generator().manual_seed(11)
    factor = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    named = dict(graph.named_parameters())
    found = torch.autograd.grad((y * factor).sum(), list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_discrete_graph_is_the_loop_over_its_nodes_and_edges(steps: int, training: bool) -> None:
    graph = graph_of(cyclic_topology(Discrete(steps=steps))).train(training)
    x = inputs(graph)
    torch.testing.assert_close(graph(x), naive(graph, x, steps))


def test_a_graph_that_is_fed_rows_is_the_loop_over_its_nodes_and_edges() -> None:
    graph = graph_of(row_topology(5, 6))
    x = torch.randn(3, 2, 5, 3, dtype=torch.float64)
    y = graph(x)
    assert y.shape == (3, 5, 1, 1)
    torch.testing.assert_close(y, naive_rows(graph, x))


@pytest.mark.parametrize(
    "dynamics", [Continuous(solver="euler", step_size=0.25, adjoint=a) for a in (False, True)]
)
def test_eulers_method_is_the_explicit_loop(dynamics: Continuous) -> None:
    graph = graph_of(cyclic_topology(dynamics)).eval()
    x = inputs(graph)
    torch.testing.assert_close(graph(x), naive_euler(graph, x, 4, 1.0))


def test_steps_fill_the_time_and_are_no_longer_than_asked() -> None:
    for time, step, number in ((1.0, 0.25, 4), (0.3, 0.1, 3), (1.0, 0.3, 4), (0.5, 2.0, 1)):
        graph = graph_of(
            plain_topology(Continuous(solver="euler", time=time, step_size=step))
        ).eval()
        assert isinstance(graph, ContinuousGraph)
        x = inputs(graph)
        torch.testing.assert_close(graph(x), naive_euler(graph, x, number, time))
        assert graph.nfe == graph.passes == number


def test_gradients_are_those_of_the_loop_and_of_live_edges_alone_without_dnw() -> None:
    for rule in ("dnw", "dnw-no-update"):
        graph = graph_of(cyclic_topology(Discrete(steps=4)), rule=rule).eval()
        x = inputs(graph)
        found, wanted = gradients(graph(x), graph), gradients(naive(graph, x, 4), graph)
        live = graph.live()
        for name, gradient in found.items():
            bundle = name.removeprefix("ops.").removesuffix(".weight")
            if bundle in live:
                torch.testing.assert_close(gradient[live[bundle]], wanted[name][live[bundle]])
                assert bool(gradient[~live[bundle]].any()) == (rule == "dnw")
            else:
                torch.testing.assert_close(gradient, wanted[name])


def test_a_dead_edge_gets_the_sum_over_time_of_what_its_source_sends_times_the_sums_gradient() -> (
    None
):
    graph = graph_of(cyclic_topology(Discrete(steps=4)), rule="dnw").eval()
    x = inputs(graph)
    sent: list[Tensor] = []
    received: list[Tensor] = []

    def watch(_: Any, given: tuple[Tensor, ...], y: Tensor) -> None:
        y.retain_grad()
        sent.append(given[0].detach())
        received.append(y)

    graph.op("to-mid").register_forward_hook(watch)
    graph(x).square().sum().backward()
    gradient = graph.op("to-mid").weight.grad
    assert gradient is not None
    assert len(received) == 3  # nobody reads the nodes' last states
    total = torch.zeros_like(gradient[:, :, 0, 0])
    for z, i in zip(sent, received, strict=True):
        assert i.grad is not None
        total += torch.einsum("nuhw,nvhw->vu", z, i.grad)
    dead = graph.learn()["to-mid"] & ~graph.live()["to-mid"]
    assert gradient[dead].count_nonzero() > 50
    torch.testing.assert_close(gradient[:, :, 0, 0][dead[:, :, 0, 0]], total[dead[:, :, 0, 0]])


@pytest.mark.parametrize("dynamics", [Discrete(steps=3), *CONTINUOUS[2:]], ids=dynamics_name)
def test_gradients_of_smooth_nodes_hold_numerically(dynamics: Discrete | Continuous) -> None:
    if isinstance(dynamics, Continuous):
        # The adjoint of a fixed grid is exact in the limit only.
        dynamics = dynamics.replace(adjoint=False, step_size=0.5)
    topology = plain_topology(dynamics, receive=SMOOTH)
    graph = graph_of(topology, rule="dnw-no-update").eval()
    names = ("mid", "out")
    live = [graph.live()[name] for name in names]

    def run(x: Tensor, *chosen: Tensor) -> Tensor:
        changed = {
            f"ops.{name}.weight": torch.zeros_like(mask, dtype=x.dtype).masked_scatter(mask, values)
            for name, mask, values in zip(names, live, chosen, strict=True)
        }
        y: Tensor = torch.func.functional_call(graph, changed, (x,))
        return y

    x = inputs(graph, side=2, count=1).requires_grad_()
    chosen = [
        graph.op(name).weight.detach()[mask].clone().requires_grad_()
        for name, mask in zip(names, live, strict=True)
    ]
    assert torch.autograd.gradcheck(run, (x, *chosen), atol=1e-6)


@pytest.mark.parametrize("solver", ["dopri5", "rk4"])
def test_the_adjoints_gradients_come_near_those_through_the_solver(solver: str) -> None:
    found = []
    for adjoint in (False, True):
        dynamics = Continuous.model_validate(
            {"solver": solver, "rtol": 1e-7, "atol": 1e-9, "step_size": 0.05, "adjoint": adjoint}
        )
        graph = graph_of(plain_topology(dynamics)).train()
        x = inputs(graph).requires_grad_()
        y = graph(x)
        y.square().sum().backward()
        by_name = {n: p.grad for n, p in graph.named_parameters()}
        found.append({"y": y.detach(), "x": x.grad, **by_name})
    direct, adjoint = found
    for name, gradient in direct.items():
        torch.testing.assert_close(adjoint[name], gradient, rtol=1e-4, atol=1e-6)
    dead = ~graph.live()["mid"]
    assert adjoint["ops.mid.weight"][dead].abs().min() > 0  # DNW's dead edges learn by it too


def test_tighter_tolerances_take_more_evaluations_and_come_nearer_the_solution() -> None:
    errors, evaluations = [], []
    exact = graph_of(plain_topology(Continuous(rtol=1e-9, atol=1e-10))).eval()
    x = inputs(exact)
    for tolerance in (1e-1, 1e-3, 1e-6):
        graph = graph_of(plain_topology(Continuous(rtol=tolerance, atol=tolerance, time=3.0)))
        exact.topology = exact.topology.model_copy(
            update={"dynamics": Continuous(rtol=1e-9, atol=1e-10, time=3.0)}
        )
        assert isinstance(graph, ContinuousGraph)
        errors.append(float((graph.eval()(x) - exact(x)).abs().max().detach()))
        evaluations.append(graph.nfe)
    assert errors[0] > errors[1] > errors[2]
    assert evaluations[0] < evaluations[1] < evaluations[2]


@pytest.mark.parametrize("solver", FIXED)
def test_solvers_with_fixed_steps_evaluate_as_often_as_computed(solver: str) -> None:
    dynamics = Continuous.model_validate({"solver": solver, "step_size": 0.3})
    graph = graph_of(plain_topology(dynamics)).eval()
    calls: list[int] = []
    graph.op("mid").register_forward_hook(lambda *_: calls.append(1))
    assert isinstance(graph, ContinuousGraph)
    graph(inputs(graph))
    assert len(calls) == graph.nfe == graph.passes == 4 * FIXED[solver]


def test_evaluations_are_counted_in_training_and_in_evaluation_apart() -> None:
    graph = graph_of(plain_topology(Continuous(rtol=1e-5, atol=1e-5, time=4.0)))
    assert isinstance(graph, ContinuousGraph)
    assert graph.passes == 0
    counts = []
    for scale in (1.0, 10.0):
        with torch.no_grad():
            graph.op("mid").weight.mul_(scale)
        graph.train()(inputs(graph)).sum().backward()
        counts.append(graph.nfe)
    assert counts[0] != counts[1]
    assert graph.passes == 0
    with graph.settled():
        graph(inputs(graph))  # measuring moments is no training
    assert graph.take_mean_nfe() == sum(counts) / 2
    assert graph.take_mean_nfe() == 0
    graph.eval()(inputs(graph))
    assert graph.passes == graph.nfe
    state = graph.state_dict()
    again = graph_of(graph.topology, seed=3)
    again.load_state_dict(state)
    assert again.passes == graph.passes


def test_dead_nodes_decide_no_step_of_an_adaptive_solver() -> None:
    topology = plain_topology(Continuous(rtol=1e-6, atol=1e-6, time=2.0), receive=())
    graph = graph_of(topology, rule="random").eval()
    assert isinstance(graph, ContinuousGraph)
    for mask in graph.live().values():
        mask.zero_()
    for bundle, destination, source in (("out", 0, 0), ("out", 1, 1), ("mid", 0, 2), ("mid", 0, 3)):
        graph.live()[bundle][destination, source] = True
    with torch.no_grad():
        graph.op("mid").weight.fill_(1.0)
        calm = graph(inputs(graph))
        before = graph.nfe
        graph.op("mid").weight.fill_(40.0)  # mid 0 grows fast, and nobody reads it
        assert torch.equal(graph(inputs(graph)), calm)
    assert graph.nfe == before


def test_a_state_that_explodes_is_an_error_that_names_the_solver() -> None:
    graph = graph_of(plain_topology(Continuous(time=50.0), receive=()))
    with torch.no_grad():
        for name in graph.ops:
            graph.op(name).weight.fill_(1e6)
    with pytest.raises(SolverError, match=r"solver 'dopri5' cannot hold rtol 0.001 and atol"):
        graph.eval()(inputs(graph))


@pytest.mark.parametrize("op", ["dense", "bwn", "xnor", "adder"])
def test_one_step_without_cycles_is_a_static_graph(op: str) -> None:
    groups = (
        NodeGroup(name="in", size=6, steps=("act", "depthwise")),
        NodeGroup(name="out", size=5),
    )
    bundles = (Bundle(name="e", sources=("in",), destination="out", kernel=(3, 3), padding=1),)
    scopes = (Scope(name="s", bundles=("e",), budget=70),)
    static = Topology(groups=groups, bundles=bundles, scopes=scopes)
    component, rule = Component(name=op), Component(name="dnw")
    one = build_graph(static, component, rule)
    other = build_graph(static.replace(dynamics={"kind": "discrete", "steps": 1}), component, rule)
    state = {
        name.replace("nodes.out.", "nodes.out:receive."): t for name, t in one.state_dict().items()
    }
    other.load_state_dict(state)
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(other(x), one(x))


def test_the_live_edges_are_those_that_act_and_stay_so_during_a_solve() -> None:
    graph = graph_of(cyclic_topology(Continuous()), rule="dnw").eval()
    x = inputs(graph)
    expected = graph(x)
    with torch.no_grad():
        for name, live in graph.live().items():
            graph.op(name).weight[~live] = 1e3
    torch.testing.assert_close(graph(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 1, 4, 6), "one step per row: it has 5 steps, got images of 4 rows"),
        ((1, 1, 5, 5), "6 input nodes, got images"),
        ((1, 6), "6 input nodes, got images"),
    ],
)
def test_images_that_do_not_fit_rows_are_refused(shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(TopologyError, match=sentence):
        graph_of(row_topology(5, 6))(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("group", "bundle", "dynamics", "sentence"),
    [
        ({"steps": ("maxpool",)}, {}, Discrete(), "'a' has step 'maxpool'"),
        ({"receive": ("pool",)}, {}, Discrete(), "'a' has step 'pool'"),
        ({"steps": ("depthwise",), "stride": 2}, {}, Continuous(), "'a' has a stride of 2"),
        ({"steps": ("dropout",)}, {}, Continuous(), "'a' has step 'dropout'"),
        ({}, {"kernel": (3, 3)}, Discrete(), r"bundle 'e' has kernel \[3, 3\]"),
        ({}, {"stride": 2}, Discrete(), "bundle 'e' has kernel .* stride 2"),
    ],
)
def test_what_would_change_the_resolution_or_the_equation_is_refused(
    group: dict[str, Any], bundle: dict[str, Any], dynamics: Any, sentence: str
) -> None:
    with pytest.raises(TopologyError, match=sentence):
        Topology(
            groups=(
                NodeGroup.model_validate({"name": "a", "size": 2, **group}),
                NodeGroup(name="b", size=2),
            ),
            bundles=(
                Bundle.model_validate(
                    {"name": "e", "sources": ("a",), "destination": "b", **bundle}
                ),
            ),
            scopes=(Scope(name="s", bundles=("e",)),),
            dynamics=dynamics,
        )


def test_an_adaptive_solver_cannot_promise_a_limit_of_operations() -> None:
    from small_networks import spec

    from wiring.network import build_network

    topology = plain_topology(Continuous())
    limited = {"name": "all", "bundles": ["in", "mid", "out"]}
    limited["limit"] = {"unit": "multiplications", "amount": 1e5}  # type: ignore[assignment]
    with pytest.raises(BudgetError, match="an adaptive solver cannot hold"):
        build_network(spec(topology.replace(scopes=[limited])))
    fixed = topology.replace(scopes=[limited], dynamics={"kind": "continuous", "solver": "rk4"})
    assert build_network(spec(fixed)).graph.live()["mid"].any()
