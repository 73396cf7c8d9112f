"""AdderNet: surrogate gradients, adaptive rate, variance, memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_cases import SHAPES, Largest, Shape, images, label, make, masks
from torch import Tensor

from wiring.config import Component
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.static import StaticGraph
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology

F64 = torch.float64
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=label)


def surrogate(
    shape: Shape, to_w: Callable[[Tensor], Tensor], to_x: Callable[[Tensor], Tensor], **options: Any
) -> None:
    """Compare with written-out gradients: of w from x - w, of x from w - x."""
    op = make("adder", shape, **options)
    live, learn = masks(shape)
    x = images(shape).requires_grad_()
    y = op(x, live, learn)
    g = torch.linspace(-1, 2, y.numel(), dtype=F64).view_as(y)
    y.backward(g)
    columns = torch.nn.functional.unfold(
        x.detach(), shape.kernel, padding=shape.padding, stride=shape.stride
    )
    weight = op.weight.detach().flatten(1)[None, :, :, None]
    gap = columns[:, None] - weight
    pull = g.flatten(2)[:, :, None]
    expected_w = (pull * to_w(gap)).sum(dim=(0, 3)).view_as(op.weight) * learn
    at_columns = (pull * to_x(-gap) * live.flatten(1)[None, :, :, None]).sum(dim=1)
    expected_x = torch.nn.functional.fold(
        at_columns, (shape.side,) * 2, shape.kernel, padding=shape.padding, stride=shape.stride
    )
    torch.testing.assert_close(op.weight.grad, expected_w, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x.grad, expected_x, rtol=1e-10, atol=1e-10)


@every_shape
def test_default_gradients_are_the_papers_surrogates(shape: Shape) -> None:
    surrogate(shape, lambda gap: gap, lambda gap: gap.clamp(-1, 1))


@every_shape
def test_sign_gradient_of_the_weights_is_the_derivative(shape: Shape) -> None:
    surrogate(shape, torch.sign, lambda gap: gap.clamp(-1, 1), weight_gradient="sign")


@every_shape
def test_full_gradient_of_the_input_is_not_clipped(shape: Shape) -> None:
    surrogate(shape, lambda gap: gap, lambda gap: gap, input_gradient="full")


def test_padding_is_a_pixel_of_value_zero() -> None:
    op = make("adder", Shape("3x3", sources=1, destinations=1, kernel=(3, 3), padding=1))
    every = torch.ones_like(op.weight, dtype=torch.bool)
    y = op(torch.zeros(1, 1, 1, 1, dtype=F64), every, every)
    torch.testing.assert_close(y.sum(), -op.weight.abs().sum())


def with_gradient(**options: Any) -> tuple[Tensor, Tensor, int]:
    """(gradient before, after the hook, edges that learn)."""
    shape = Shape("3x3", kernel=(3, 3), padding=1)
    op = make("adder", shape, **options)
    live, learn = masks(shape)
    op(images(shape), live, learn).square().sum().backward()
    assert op.weight.grad is not None
    before = op.weight.grad.clone()
    op.scale_gradient(learn)
    return before, op.weight.grad, int(learn.sum())


@pytest.mark.parametrize("eta", [0.2, 1.5])
def test_adaptive_rate_gives_the_gradient_norm_eta_root_k(eta: float) -> None:
    before, after, edges = with_gradient(eta=eta)
    assert after.norm().item() == pytest.approx(eta * math.sqrt(edges))
    torch.testing.assert_close(after / after.norm(), before / before.norm())


def test_other_rates_multiply_the_gradient_or_leave_it() -> None:
    before, after, _ = with_gradient(learning_rate="increased", increase=50)
    torch.testing.assert_close(after, before * 50)
    before, after, _ = with_gradient(learning_rate="plain")
    assert torch.equal(after, before)


def test_a_zero_gradient_stays_zero() -> None:
    op = make("adder", Shape("any"))
    op.weight.grad = torch.zeros_like(op.weight)
    op.scale_gradient(torch.ones_like(op.weight, dtype=torch.bool))
    assert not op.weight.grad.any()


@pytest.mark.parametrize("density", [0.25, 1.0])
def test_mean_and_variance_follow_the_papers_formula(density: float) -> None:
    generator = torch.Generator().manual_seed(5)
    sources, destinations, var_x, var_w = 128, 256, 4.0, 1.0
    op = make("adder", Shape("wide", sources=sources, destinations=destinations)).float()
    weight = torch.randn(op.weight.shape, generator=generator)
    op.weight.data.copy_(weight * math.sqrt(var_w))
    live = torch.zeros_like(weight, dtype=torch.bool)
    edges = int(sources * density)
    live[:, :edges] = True
    x = torch.randn(64, sources, 8, 8, generator=generator) * math.sqrt(var_x)
    y = op(x, live, live).detach()
    mean = -edges * math.sqrt(2 * (var_x + var_w) / math.pi)
    variance = (1 - 2 / math.pi) * edges * (var_x + var_w)
    assert y.mean().item() == pytest.approx(mean, rel=0.01)
    assert y.var().item() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_training_never_holds_an_array_of_edges_times_pixels(density: float) -> None:
    shape = Shape("wide", batch=4, sources=64, destinations=64, side=16, density=density)
    op = make("adder", shape).float()
    live, learn = masks(shape)
    x = images(shape).float().requires_grad_()
    with Largest() as largest:
        op(x, live, learn).square().sum().backward()
    assert x.numel() <= largest.elements <= 2 * x.numel()


def test_half_precision_inputs_are_computed_in_the_weights_precision() -> None:
    shape = Shape("pointwise")
    op = make("adder", shape).float()
    live, learn = masks(shape)
    x = images(shape).to(torch.bfloat16).requires_grad_()
    y = op(x, live, learn)
    y.sum().backward()
    assert y.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_adders_cost_two_additions_an_edge_and_no_multiplication() -> None:
    live, _ = masks(Shape("pointwise"))
    edges = int(live.sum())
    cost = make("adder", Shape("pointwise")).cost(live, 10)
    assert cost == Cost(additions=20 * edges, weight_bits=32 * edges)


def test_bytes_cost_a_byte_an_edge_and_a_float_an_output_and_nothing_where_none_lives() -> None:
    op = make("adder", Shape("pointwise"), precision="uint8").float().eval()
    live, _ = masks(Shape("pointwise"))
    edges = int(live.sum())
    op.quantise(torch.randn(op.shape), live, -2.0, 2.0)
    assert op.cost(live, 10) == Cost(additions=20 * edges, weight_bits=8 * edges + 32 * 6)
    assert op.cost(live[1:], 1).weight_bits == 8 * edges + 32 * 5  # as in a compacted network
    none = torch.zeros_like(live)
    assert op.cost(none, 10) == Cost()
    assert op.pack(none) == {}
    op.unpack({}, none)
    assert not op(images(Shape("pointwise")).float(), none, none).any()


def test_bytes_take_over_no_float_weights() -> None:
    op = make("adder", Shape("pointwise"), precision="uint8")
    with pytest.raises(WiringError, match="uint8 are made of trained ones"):
        op.approximate(torch.zeros(op.shape))


def test_an_accumulated_gradient_is_scaled_once_as_that_of_the_whole_batch() -> None:
    shape = Shape("pointwise", batch=4)
    live, learn = masks(shape)
    whole, halves = make("adder", shape), make("adder", shape)
    x = images(shape)
    whole(x, live, learn).square().sum().backward()
    for half in x.split(2):
        halves(half, live, learn).square().sum().backward()
    for op in (whole, halves):
        op.scale_gradient(learn)
    torch.testing.assert_close(whole.weight.grad, halves.weight.grad)


def test_a_group_that_receives_adder_sums_is_normalised_first() -> None:
    topology = Topology(
        groups=(NodeGroup(name="in", size=8), NodeGroup(name="out", size=6)),
        bundles=(Bundle(name="edges", sources=("in",), destination="out"),),
        scopes=(Scope(name="all", bundles=("edges",)),),
    )
    rule = Component(name="complete")
    x = 3 * torch.randn(16, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    y = StaticGraph(topology, Component(name="adder"), rule)(x).detach()
    assert y.mean().abs() < 1e-5
    assert y.std() == pytest.approx(1.0, abs=0.01)
    assert len(StaticGraph(topology, Component(name="dense"), rule).nodes["out"]) == 0
