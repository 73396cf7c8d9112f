"""Small networks that hold everything a topology may hold, for the tests of graphs."""

from __future__ import annotations

import torch

from wiring.compact import compact
from wiring.config import Component
from wiring.graph.driving import attach
from wiring.graph.edges import EDGE_OPS
from wiring.graph.rules import EDGE_RULES
from wiring.graph.topology import Bundle, NodeGroup, Scope, Skip, Topology
from wiring.network import HeadSpec, ImageShape, ModelSpec, Network, StemSpec, build_network

RULES = EDGE_RULES.names()
OPS = [*(Component(name=name) for name in EDGE_OPS.names())]
if "xnor" in EDGE_OPS.names():
    OPS.append(Component(name="xnor", input_scale=True))
# Every operator with one rule, and every rule with two operators: all pairs would take an hour.
PAIRS = [
    *((op, "dnw") for op in OPS),
    *(
        (Component(name=name), rule)
        for name in ("dense", "xnor")
        for rule in RULES
        if rule != "dnw"
    ),
]
SIDE = 12


def pair_name(value: object) -> str:
    """A readable test id for an operator or a rule."""
    return op_name(value) if isinstance(value, Component) else str(value)


def is_tied(op: Component) -> bool:
    """Whether the operator's edges share parameters, so that none of its nodes can be cut out."""
    return EDGE_OPS.get(op.name).tied


def op_name(op: Component) -> str:
    """A readable test id."""
    return "-".join([op.name, *op.options])


def mixed_topology(*, inputs: int = 8, budgets: tuple[int, int, int] = (12, 14, 6)) -> Topology:
    """Joined sources, a listed bundle, a 3x3 kernel with stride, a skip, both norms, labels."""
    labels = tuple(f"unit {i}" for i in range(5))
    return Topology(
        groups=(
            NodeGroup(name="in", size=inputs, steps=("norm", "act", "depthwise"), stride=2),
            NodeGroup(name="a", size=7, steps=("norm", "act", "depthwise"), stage=1),
            NodeGroup(name="b", size=5, steps=("act", "norm"), norm="instance", labels=labels),
            NodeGroup(name="c", size=6, steps=("norm", "act"), stage=2),
            NodeGroup(name="out", size=4, stage=3),
        ),
        bundles=(
            Bundle(name="in-a", sources=("in",), destination="a"),
            Bundle(
                name="ina-b",
                sources=("in", "a"),
                destination="b",
                edges=tuple((d, s) for d in range(5) for s in range(inputs + 7) if (d + s) % 3),
            ),
            Bundle(name="b-c", sources=("b",), destination="c", kernel=(3, 3), stride=2, padding=1),
            Bundle(name="c-out", sources=("c",), destination="out"),
        ),
        scopes=(
            Scope(name="early", bundles=("in-a", "ina-b"), budget=budgets[0]),
            Scope(name="kernels", bundles=("b-c",), budget=budgets[1]),
            Scope(name="late", bundles=("c-out",), budget=budgets[2]),
        ),
        skips=(Skip(source="a", destination="b", start=2),),
    )


def spec(
    topology: Topology,
    op: Component | str = "dense",
    rule: str = "dnw",
    *,
    stem: StemSpec | None = None,
    head: HeadSpec | None = None,
    channels: int = 3,
) -> ModelSpec:
    """A classifier of 3 classes (4 without a head) for 12x12 images."""
    head = head or HeadSpec()
    return ModelSpec(
        space="test",
        choices={},
        image=ImageShape(channels=channels, side=SIDE),
        classes=topology.output.size if head.kind == "none" else 3,
        stem=stem or StemSpec(),
        topology=topology,
        head=head,
        op=Component(name=op) if isinstance(op, str) else op,
        rule=Component(name=rule),
    )


def images(count: int = 6, *, channels: int = 3, seed: int = 5) -> torch.Tensor:
    """[count, channels, 12, 12], standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, SIDE, SIDE, generator=generator)


def trained(model: ModelSpec, *, steps: int = 3, seed: int = 0) -> Network:
    """A network after a few steps, so that no parameter has its first value; in eval mode."""
    network = build_network(model, seed=seed).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    steps = max(steps, len(network.graph.phases())) if network.graph.staged else steps
    attach(network, optimizer, steps=steps, data=lambda: [images(channels=model.image.channels)])
    targets = torch.arange(6) % model.classes
    for step in range(steps):
        optimizer.zero_grad()
        scores = network(images(channels=model.image.channels, seed=step))
        torch.autograd.backward(torch.nn.functional.cross_entropy(scores, targets))
        optimizer.step()
    return network.eval()


def check_second_stage(network: Network) -> None:
    """It is in its second stage, comes back so from a state dict, and compacts to the same."""
    assert network.graph.stage == 1
    again = build_network(network.spec, seed=9).eval()
    again.load_state_dict(network.state_dict())
    assert again.graph.stage == 1
    assert torch.equal(again(images()), network(images()))
    torch.testing.assert_close(compact(network)(images()), network(images()))
