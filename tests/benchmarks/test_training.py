"""Both sides of a training benchmark take the same step."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks import training
from benchmarks.obvious import AdderLayer, MaskedGraph
from benchmarks.training import Step, lenet
from search.spaces.base import SPACES
from wiring.errors import UnknownNameError, WiringError
from wiring.graph.edges import EDGE_OPS
from wiring.network import ImageShape, Network, build_network

IMAGE = ImageShape(channels=3, side=16)


def tiny() -> Network:
    space = SPACES.get("tiny")({})
    return build_network(space.build(space.defaults(IMAGE), IMAGE, 10), seed=0)


@pytest.mark.usefixtures("seeded")
def test_three_steps_of_the_obvious_formula_are_three_steps_of_ours() -> None:
    network = tiny()
    ours, obvious = network, training._ObviousNetwork(network)
    x, y = training._batch(4, IMAGE)
    steps = [Step(ours, x, y), Step(obvious, x, y)]
    for _ in range(3):
        for step in steps:
            step()
    theirs = obvious.state_dict()
    for name, tensor in ours.state_dict().items():
        if name in theirs:
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)
    assert steps[0].first_loss == pytest.approx(steps[1].first_loss, rel=1e-5)
    weight = ours.graph.op("b4").weight
    assert not torch.equal(weight, tiny().graph.op("b4").weight)


def test_the_obvious_graph_has_no_edges_but_the_budget() -> None:
    network = tiny()
    graph = MaskedGraph(network.spec.topology)
    live = sum(int((weight != 0).sum()) for weight in graph._masked().values())
    assert live == network.graph.scope("all").rule.budget


@pytest.mark.usefixtures("seeded")
def test_the_obvious_adder_is_the_operator() -> None:
    layer, op = AdderLayer(3, 4, 3), EDGE_OPS.get("adder")(3, 4, kernel=(3, 3))
    with torch.no_grad():
        op.weight.copy_(layer.weight)
    x = torch.randn(2, 3, 6, 5, requires_grad=True)
    live = torch.ones(op.weight.shape, dtype=torch.bool)
    pull = torch.randn(2, 4, 4, 3)
    (to_x, to_w), (expected_x, expected_w) = (
        torch.autograd.grad(y, (x, weight), pull)
        for y, weight in ((layer(x), layer.weight), (op(x, live, live), op.weight))
    )
    torch.testing.assert_close(layer(x), op(x, live, live), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_x, expected_x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_w, expected_w, rtol=1e-4, atol=1e-4)


def test_lenet_has_the_papers_layers() -> None:
    """28x28 images: 416,520 products or distances (the paper counts 435 K with its norms)."""
    images, terms = torch.zeros(1, 1, 28, 28), 0
    for layer in lenet(AdderLayer).eval():
        before, images = images, layer(images)
        weight = getattr(layer, "weight", None)
        if weight is not None and weight.dim() == 4:
            assert before.shape[1] == weight.shape[1]
            terms += weight.numel() * images.shape[-1] ** 2 if images.dim() == 4 else 840
    assert terms == 416_520
    assert images.shape == (1, 10)


def test_different_first_losses_are_refused() -> None:
    network = tiny()
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.head[-1].bias += torch.arange(10.0)
    x, y = training._batch(2, IMAGE)
    with pytest.raises(WiringError, match="the first losses differ"):
        training._same_loss(Step(network, x, y), [Step(other, x, y)])


@pytest.mark.usefixtures("seeded")
def test_a_step_without_edges_still_trains_their_weights() -> None:
    network = tiny()
    free = training._without_edges(network)
    x, y = training._batch(2, IMAGE)
    Step(free, x, y)()
    assert isinstance(free, Network)
    grad = free.graph.op("out").weight.grad
    assert grad is not None
    assert grad.isfinite().all()
    assert network.graph.op("out").weight.grad is None


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="there are mobilenet-graph, tiny, adder"):
        next(training.find("resnet"))
