"""Small graphs with cycles, and what their definition says of them, node by node in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wiring.config import Component
from wiring.graph.build import build_graph
from wiring.graph.dynamic import ContinuousGraph, DiscreteGraph, DynamicGraph, receiver
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

ROWS = 12


def cyclic_topology(dynamics: Dynamics, *, budgets: tuple[int, int] = (14, 9)) -> Topology:
    """Self loops, a cycle over three groups, a 3x3 kernel, both norms, two skips, labels."""
    labels = tuple(f"unit {i}" for i in range(14))
    listed = tuple((d, s) for d in range(14) for s in range(30) if (d + s) % 3)
    inside = ("in", "mid", "out")
    return Topology(
        groups=(
            NodeGroup(
                name="in",
                size=12,
                steps=("act", "depthwise"),
                receive=("norm",),
                norm="instance",
            ),
            NodeGroup(name="mid", size=14, steps=("act",), receive=("norm",), labels=labels),
            NodeGroup(name="out", size=4, receive=("bias", "tanh"), stage=1),
        ),
        bundles=(
            Bundle(name="to-in", sources=inside, destination="in"),
            Bundle(name="to-mid", sources=inside, destination="mid", edges=listed),
            Bundle(name="to-out", sources=("mid",), destination="out", kernel=(3, 3), padding=1),
        ),
        scopes=(
            Scope(name="cycles", bundles=("to-in", "to-mid"), budget=budgets[0]),
            Scope(name="kernels", bundles=("to-out",), budget=budgets[1]),
        ),
        skips=(
            Skip(source="in", destination="mid", nodes=(0, 1, 2, *[3] * 11)),
            Skip(source="mid", destination="mid", carries="value"),
        ),
        dynamics=dynamics,
    )


def row_topology(steps: int = ROWS, columns: int = 36, *, budget: int = 100) -> Topology:
    """A recurrent graph that is fed rows, with an edge back into the input nodes."""
    return Topology(
        groups=(
            NodeGroup(name="in", size=columns),
            NodeGroup(name="mid", size=20, receive=("bias", "tanh")),
            NodeGroup(name="out", size=5, receive=("tanh",)),
        ),
        bundles=(
            Bundle(name="mid", sources=("in", "mid"), destination="mid"),
            Bundle(name="back", sources=("mid",), destination="in"),
            Bundle(name="out", sources=("in", "mid", "out"), destination="out"),
        ),
        scopes=(Scope(name="all", bundles=("mid", "back", "out"), budget=budget),),
        dynamics=Discrete(steps=steps, feed="rows"),
    )


def plain_topology(
    dynamics: Dynamics, *, steps: tuple[str, ...] = (), receive: tuple[str, ...] = ("tanh",)
) -> Topology:
    """Smooth nodes, each of the 9 may read each: nothing but 1x1 edges and `steps`, `receive`."""
    sizes = {"in": 3, "mid": 4, "out": 2}
    return Topology.model_validate(
        {
            "groups": [
                {"name": n, "size": s, "steps": steps, "receive": receive, "norm": "instance"}
                for n, s in sizes.items()
            ],
            "bundles": [{"name": n, "sources": list(sizes), "destination": n} for n in sizes],
            "scopes": [{"name": "all", "bundles": list(sizes), "budget": 30}],
            "dynamics": dynamics.model_dump(),
        }
    )


def graph_of(
    topology: Topology, op: str = "dense", rule: str = "dnw", *, seed: int = 0
) -> DynamicGraph:
    """A graph in float64 whose parameters are all away from their first values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        graph = build_graph(topology, Component(name=op), Component(name=rule)).double()
        for name, parameter in graph.named_parameters():
            if not name.startswith("ops."):
                parameter.data += 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    assert isinstance(graph, DiscreteGraph | ContinuousGraph)
    return graph


def by_nodes(graph: DynamicGraph, states: dict[str, Tensor], fed: Tensor | None) -> dict[str, Any]:
    """One evaluation of the definition, one live edge at a time, for dense 1x1 and 3x3 edges."""
    topology, live = graph.topology, graph.live()
    values = {g.name: through(graph.nodes[g.name], states[g.name]) for g in topology.groups}
    changes = {}
    for group in topology.groups:
        received = torch.zeros_like(states[group.name])
        if group is topology.input and fed is not None:
            received = received + fed
        for bundle in topology.bundles:
            if bundle.destination != group.name:
                continue
            weight = graph.op(bundle.name).weight
            nodes = [(n, i) for n in bundle.sources for i in range(topology.group(n).size)]
            columns = []
            for v in range(group.size):
                total = torch.zeros_like(received[:, 0])
                for _, column, row, place in _edges(live[bundle.name], v):
                    name, u = nodes[column]
                    shift = (row - bundle.padding, place - bundle.padding)
                    total = total + weight[v, column, row, place] * _shifted(
                        values[name][:, u], *shift
                    )
                columns.append(total)
            received = received + torch.stack(columns, dim=1)
        for skip in topology.skips:
            if skip.destination == group.name:
                carried = states if skip.carries == "sum" else values
                received = received + carried[skip.source][:, list(skip.reads(group.size))]
        changes[group.name] = through(graph.nodes[receiver(group.name)], received)
    return changes


def through(steps: nn.Module, x: Tensor) -> Tensor:
    """Module after module, in PyTorch's own way."""
    for module in steps.children():
        x = module(x)
    return x


def _edges(live: Tensor, row: int) -> list[list[int]]:
    return [[row, *place] for place in live[row].nonzero().tolist()]


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """x[..., i + down, j + right], 0 beyond the border."""
    height, width = x.shape[-2:]
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]


def start(graph: DynamicGraph, x: Tensor) -> dict[str, Tensor]:
    """The state in the beginning."""
    n, _, height, width = x.shape
    states = {g.name: x.new_zeros(n, g.size, height, width) for g in graph.topology.groups}
    states[graph.topology.input.name] = x
    return states


CONTINUOUS = [
    Continuous(),
    Continuous(adjoint=True),
    Continuous(solver="rk4", step_size=0.25),
    Continuous(solver="midpoint", step_size=0.25, adjoint=True),
]
EVERY = [Discrete(steps=4), *CONTINUOUS[:3:2]]


def dynamics_name(dynamics: Dynamics) -> str:
    """A readable test id."""
    if isinstance(dynamics, Discrete):
        return "discrete"
    return dynamics.solver + ("-adjoint" if dynamics.adjoint else "")
