"""A small graph on which every edge rule can be trained, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wiring.config import Component
from wiring.graph.driving import attach
from wiring.graph.edges import EDGE_OPS
from wiring.graph.rules import EdgeRule, ScopeEdges
from wiring.graph.static import StaticGraph
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology

STEPS = 20
BUDGET = 11
PRICES = {"a": 2.0, "b": 3.0}


def topology(budget: int | None = BUDGET) -> Topology:
    """Two bundles that share a budget, 20 and 13 usable edges; one has 27 places."""
    return Topology(
        groups=(
            NodeGroup(name="in", size=4),
            NodeGroup(name="mid", size=5, steps=("norm", "act")),
            NodeGroup(name="out", size=3, steps=("norm",)),
        ),
        bundles=(
            Bundle(name="a", sources=("in",), destination="mid"),
            Bundle(
                name="b",
                sources=("in", "mid"),
                destination="out",
                edges=tuple((d, s) for d in range(3) for s in range(9) if (d + s) % 2),
            ),
        ),
        scopes=(Scope(name="all", bundles=("a", "b"), budget=budget),),
    )


def graph(
    rule: str, op: str = "dense", seed: int = 0, shape: Topology | None = None, **options: Any
) -> StaticGraph:
    """The graph of `topology()`, or another one, with prices where the rule asks for them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = StaticGraph(shape or topology(), Component(name=op), Component(name=rule, **options))
    if made.wants_prices:
        made.set_prices(PRICES)
    return made


class Training:
    """`steps` steps of momentum SGD on random data that depends on the step alone."""

    def __init__(self, module: StaticGraph, steps: int = STEPS, *, lr: float = 0.3) -> None:
        self.module, self.done = module, 0
        self.optimizer = torch.optim.SGD(
            module.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3
        )
        attach(module, self.optimizer, steps=steps)

    def step(self) -> None:
        """One step; the gradients that it used stay where they are."""
        generator = torch.Generator().manual_seed(self.done)
        topology = self.module.topology
        x = torch.randn(6, topology.input.size, 3, 3, generator=generator)
        target = torch.randn(6, topology.output.size, 3, 3, generator=generator)
        self.optimizer.zero_grad()
        (self.module(x) - target).square().mean().backward()
        self.optimizer.step()
        self.done += 1

    def run(self, steps: int, after: Callable[[], None] = lambda: None) -> list[Tensor]:
        """The first scope's live edges after each of `steps` steps."""
        history = []
        for _ in range(steps):
            self.step()
            after()
            history.append(self.module.wirings()[0][1].live.clone())
        return history

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "module": {n: t.clone() for n, t in self.module.state_dict().items()},
            "momenta": {
                n: self.optimizer.state[p]["momentum_buffer"].clone()
                for n, p in self.module.named_parameters()
                if self.optimizer.state.get(p)
            },
            "rng": torch.get_rng_state(),
            "done": self.done,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.module.load_state_dict(state["module"])
        self.optimizer.state.clear()
        for name, parameter in self.module.named_parameters():
            if name in state["momenta"]:
                buffer = state["momenta"][name].clone()
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        torch.set_rng_state(state["rng"])
        self.done = state["done"]


def train(module: StaticGraph, steps: int = STEPS) -> list[Tensor]:
    """A whole training of `steps` steps: the live edges after each."""
    return Training(module, steps).run(steps)


def scope_of(
    rule: EdgeRule,
    weights: list[list[float]],
    live: list[int] | None = None,
    *,
    gradients: list[list[float]] | None = None,
    momenta: list[list[float]] | None = None,
    prices: list[float] | None = None,
) -> ScopeEdges:
    """A scope of one-to-many bundles with these weights, one list per bundle, all usable."""
    ops, flat = [], [value for part in weights for value in part]
    for part in weights:
        op = EDGE_OPS.get("dense")(len(part), 1)
        op.weight.data.copy_(torch.tensor(part).view(1, -1, 1, 1))
        ops.append(op)
    optimizer = torch.optim.SGD(nn.ParameterList([op.weight for op in ops]), lr=0.1, momentum=0.9)
    for number, op in enumerate(ops):
        if gradients is not None:
            op.weight.grad = torch.tensor(gradients[number]).view_as(op.weight)
        if momenta is not None:
            buffer = torch.tensor(momenta[number]).view_as(op.weight)
            optimizer.state[op.weight]["momentum_buffer"] = buffer
    rule.allocate(len(flat))
    if prices is not None:
        rule.prices = torch.cat(
            [torch.full((len(part),), price) for part, price in zip(weights, prices, strict=True)]
        )
    alive = torch.tensor([True] * len(flat) if live is None else live, dtype=torch.bool)
    return ScopeEdges(ops, alive, torch.ones(len(flat), dtype=torch.bool), rule.prices, optimizer)
