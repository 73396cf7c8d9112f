"""The two properties of Discovering Neural Wirings: its gradient, and that swaps help."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wiring.config import Component
from wiring.graph.edges import EDGE_OPS
from wiring.graph.rules import EDGE_RULES
from wiring.graph.static import StaticGraph
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology


def by_hand(rule: str) -> tuple[StaticGraph, Tensor]:
    """Two inputs, two nodes, one output, no node functions; three of six edges live."""
    topology = Topology(
        groups=(
            NodeGroup(name="in", size=2),
            NodeGroup(name="mid", size=2),
            NodeGroup(name="out", size=1),
        ),
        bundles=(
            Bundle(name="a", sources=("in",), destination="mid"),
            Bundle(name="b", sources=("mid",), destination="out"),
        ),
        scopes=(Scope(name="all", bundles=("a", "b"), budget=3),),
    )
    graph = StaticGraph(topology, Component(name="dense"), Component(name=rule))
    with torch.no_grad():
        graph.op("a").weight.copy_(torch.tensor([[0.9, 0.1], [0.2, 0.8]]).view(2, 2, 1, 1))
        graph.op("b").weight.copy_(torch.tensor([[0.7, 0.05]]).view(1, 2, 1, 1))
    # Live: 0.9 and 0.8 in a, 0.7 in b.
    live = torch.tensor([1, 0, 0, 1, 1, 0], dtype=torch.bool)
    graph.scope("all").live.copy_(live)
    x = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1).requires_grad_()
    graph(x).sum().backward()
    return graph, x


def weight_gradient(graph: StaticGraph, bundle: str) -> list[float]:
    grad = graph.op(bundle).weight.grad
    assert grad is not None
    return grad.flatten().tolist()


def test_a_hallucinated_edges_gradient_is_its_source_times_its_destinations_gradient() -> None:
    graph, _ = by_hand("dnw")
    # Z_mid = (0.9·2, 0.8·3); the loss is the output, so its gradient there is 1.
    assert weight_gradient(graph, "b") == pytest.approx([1.8, 2.4])
    # The gradient at mid is (0.7, 0): the dead edge 0.05 carries none back.
    assert weight_gradient(graph, "a") == pytest.approx([0.7 * 2, 0.7 * 3, 0, 0])


def test_the_gradient_of_a_nodes_output_flows_through_live_edges_only() -> None:
    _, x = by_hand("dnw")
    assert x.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([0.9 * 0.7, 0])


def test_without_updates_dead_edges_receive_nothing() -> None:
    graph, _ = by_hand("dnw-no-update")
    assert weight_gradient(graph, "b") == pytest.approx([1.8, 0])
    assert weight_gradient(graph, "a") == pytest.approx([0.7 * 2, 0, 0, 0])


def test_every_edges_gradient_is_the_inner_product_over_batch_and_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    op = EDGE_OPS.get("dense")(5, 4).double()
    live = torch.rand(op.weight.shape, generator=generator) < 0.3
    every = torch.ones_like(live)
    z = torch.randn(3, 5, 4, 4, generator=generator, dtype=torch.float64)
    received = op(z, live, every)
    received.retain_grad()
    (received.tanh() ** 2).sum().backward()
    assert received.grad is not None
    expected = torch.einsum("nuhw,nvhw->vu", z, received.grad)
    torch.testing.assert_close(op.weight.grad[:, :, 0, 0], expected)


def loss_after_a_swap(seed: int, rate: float) -> float | None:
    """By how much one step of the weights alone changes a loss; None if no edge is swapped."""
    generator = torch.Generator().manual_seed(seed)
    op, rule = EDGE_OPS.get("dense")(6, 3).double(), EDGE_RULES.get("dnw")(5)
    op.weight.data.copy_(1e-3 * torch.randn(3, 6, 1, 1, generator=generator))
    z = torch.randn(8, 6, 1, 1, generator=generator, dtype=torch.float64)
    target = torch.randn(8, 3, 1, 1, generator=generator, dtype=torch.float64)
    every = torch.ones_like(op.weight, dtype=torch.bool)

    def wire() -> Tensor:
        return rule.select(op.scores().flatten(), every.flatten(), None).view_as(every)

    def loss(live: Tensor) -> Tensor:
        return (op(z, live, every) - target).square().mean()

    before = wire()
    first = loss(before)
    first.backward()
    assert op.weight.grad is not None
    op.weight.data -= rate * op.weight.grad
    after = wire()
    return None if torch.equal(before, after) else (loss(after) - first).item()


def test_a_swap_of_edges_does_not_raise_the_loss_of_its_minibatch() -> None:
    """Wortsman 2019, section 3: node states fixed, other parameters frozen, small α."""
    changes = [loss_after_a_swap(seed, rate=1e-3) for seed in range(400)]
    swaps = [change for change in changes if change is not None]
    assert len(swaps) > 100
    assert max(swaps) <= 0
