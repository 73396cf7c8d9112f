"""One-bit weights and inputs: gradients, projection, scale, packing, order of a block."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from method_cases import Shape, images, make, masks
from torch import Tensor

from wiring.config import Component
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.binary import binary_weight, row_scale, sign
from wiring.graph.edges import EDGE_OPS
from wiring.graph.topology import Step

F64 = torch.float64
BINARY = pytest.mark.parametrize("name", ["bwn", "xnor"])


def row(*values: float) -> Tensor:
    """A weight or a gradient [1, S, 1, 1]."""
    return torch.tensor(values, dtype=F64).view(1, -1, 1, 1)


def mask(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool).view(1, -1, 1, 1)


def gradient(weight: Tensor, live: Tensor, learn: Tensor, mode: Any, g: Tensor) -> list[float]:
    weight = weight.clone().requires_grad_()
    binary_weight(weight, live, learn, mode).backward(g)
    assert weight.grad is not None
    return weight.grad.flatten().tolist()


def test_sign_of_zero_is_plus_one_and_keeps_the_memory_format() -> None:
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    assert sign(x)[0, :, 0, 0].tolist() == [-1, 1, 1, 1]
    assert sign(x).is_contiguous(memory_format=torch.channels_last)


def test_exact_gradient_is_autograds_of_the_mean_times_a_clipped_sign() -> None:
    live, _ = masks(Shape("3x3", kernel=(3, 3), density=0.6))
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(live.shape, generator=generator, dtype=F64).requires_grad_()
    g = torch.randn(live.shape, generator=generator, dtype=F64)
    binary_weight(weight, live, live, "exact").backward(g)
    ours = weight.grad
    weight.grad = None
    count = live.sum(dim=(1, 2, 3), keepdim=True)
    alpha = (weight.abs() * live).sum(dim=(1, 2, 3), keepdim=True) / count.clamp(min=1)
    straight = weight.clamp(-1, 1) - weight.clamp(-1, 1).detach() + sign(weight)
    (alpha * straight * live * g).sum().backward()
    torch.testing.assert_close(ours, weight.grad, rtol=1e-12, atol=1e-12)


def test_the_three_weight_gradients_of_a_row_worked_out_by_hand() -> None:
    weight, g, every = row(0.5, -2.0, -0.5), row(1.0, 2.0, 3.0), mask(1, 1, 1)
    # n = 3, alpha = 1; the second weight is clipped; sum of g·sign = 1 - 2 - 3 = -4
    exact = [-4 / 3 + 1, 4 / 3, 4 / 3 + 3]
    paper = [1 * (1 / 3 + 1), 2 / 3, 3 * (1 / 3 + 1)]
    repo = [value * (1 - 1 / 3) * 3 for value in paper]
    assert gradient(weight, every, every, "exact", g) == pytest.approx(exact)
    assert gradient(weight, every, every, "paper", g) == pytest.approx(paper)
    assert gradient(weight, every, every, "repo", g) == pytest.approx(repo)


def test_a_dead_edge_learns_straight_through_the_mask_with_the_rows_scale() -> None:
    weight, g = row(0.5, -0.3, -0.1), row(1.0, 2.0, 3.0)
    live, every = mask(1, 1, 0), mask(1, 1, 1)
    through_scale = (1.0 - 2.0) / 2
    exact = [through_scale + 0.4, -through_scale + 0.4 * 2, 0.4 * 3]
    assert gradient(weight, live, every, "exact", g) == pytest.approx(exact)
    paper = [1 * (0.5 + 0.4), 2 * (0.5 + 0.4), 3 * (0.5 + 0.4)]
    assert gradient(weight, live, every, "paper", g) == pytest.approx(paper)


def test_a_row_without_live_edges_can_still_be_revived() -> None:
    weight, g = row(0.5, -0.3), row(1.0, 2.0)
    none, every = mask(0, 0), mask(1, 1)
    assert gradient(weight, none, every, "exact", g) == pytest.approx([0.5, 0.6])
    assert gradient(weight, none, every, "paper", g) == pytest.approx([1.5, 2.6])
    assert not binary_weight(weight, none, every, "exact").any()


def test_the_released_codes_gradient_refuses_a_single_source() -> None:
    with pytest.raises(WiringError, match="at least 2 sources to learn, got 1"):
        gradient(row(0.5), mask(1), mask(1), "repo", row(1.0))


@pytest.mark.parametrize("edges", [3, 7, 576, 1001])
def test_a_row_of_equal_magnitudes_has_exactly_that_scale(edges: int) -> None:
    generator = torch.Generator().manual_seed(edges)
    weight = torch.randn(1, edges, 1, 1, generator=generator)
    every = torch.ones_like(weight, dtype=torch.bool)
    alpha = row_scale(weight, every)
    assert torch.equal(row_scale(alpha * sign(weight), every), alpha)


@BINARY
def test_projection_of_a_complete_filter_centres_over_sources_then_clamps(name: str) -> None:
    op = make(name, Shape("3x3", kernel=(3, 3)))
    before = op.weight.detach().clone() * 2
    op.weight.data.copy_(before)
    every = torch.ones_like(before, dtype=torch.bool)
    op.after_step(every, every)
    expected = (before - before.mean(dim=1, keepdim=True)).clamp(-1, 1)
    torch.testing.assert_close(op.weight.data, expected)
    assert op.weight.abs().max() == 1


@BINARY
def test_projection_of_a_sparse_row_clamps_but_never_centres(name: str) -> None:
    op = make(name, Shape("row", sources=3, destinations=2))
    op.weight.data.copy_(torch.tensor([[0.5, 0.1, 0.3], [2.0, 0.2, 0.4]]).view(2, 3, 1, 1))
    learn = torch.tensor([[1, 0, 0], [1, 1, 0]], dtype=torch.bool).view(2, 3, 1, 1)
    op.after_step(learn, learn)
    assert op.weight.flatten().tolist() == pytest.approx([0.5, 0.1, 0.3, 1.0, 0.2, 0.4])


@BINARY
def test_centring_leaves_the_only_source_of_a_bundle_alone(name: str) -> None:
    op = make(name, Shape("one", sources=1, destinations=1))
    op.weight.data.fill_(0.5)
    every = torch.ones_like(op.weight, dtype=torch.bool)
    op.after_step(every, every)
    assert op.weight.item() == 0.5


@BINARY
def test_the_projection_can_be_switched_off(name: str) -> None:
    op = make(name, Shape("free"), center=False, clamp=False)
    before = op.weight.detach().clone()
    every = torch.ones_like(before, dtype=torch.bool)
    op.after_step(every, every)
    assert torch.equal(op.weight, before)


@BINARY
def test_signs_are_packed_in_order_with_the_first_in_the_highest_bit(name: str) -> None:
    op = make(name, Shape("row", sources=10, destinations=1))
    op.weight.data.copy_(row(1, -1, 1, 1, -1, -1, -1, 5, 0.0, 1))
    live = mask(1, 1, 1, 1, 1, 1, 1, 0, 1, 1)
    assert op.pack(live)["signs"].tolist() == [0b10110001, 0b10000000]
    assert op.pack(live)["alpha"].tolist() == pytest.approx([8 / 9])


def test_the_gradient_of_a_sign_passes_only_between_minus_one_and_one() -> None:
    op = make("xnor", Shape("row", sources=5, destinations=1, side=1))
    op.weight.data.copy_(row(0.5, 0.5, -0.5, 0.5, 0.5))
    every = torch.ones_like(op.weight, dtype=torch.bool)
    x = row(-1.5, -0.5, 0.5, 1.0, 0.0).requires_grad_()
    op(x, every, every).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0, 0.5, -0.5, 0, 0.5]


def test_the_sum_of_signs_is_exact_in_float32() -> None:
    shape = Shape("wide", sources=96, destinations=8, kernel=(3, 3), padding=1, density=0.7)
    op = make("xnor", shape).float()
    live, learn = masks(shape)
    x = images(shape).float()
    sums = torch.nn.functional.conv2d(
        sign(x).double(), (sign(op.weight) * live).double(), padding=1
    )
    expected = row_scale(op.weight.detach(), live).view(1, -1, 1, 1) * sums.float()
    assert torch.equal(op(x, live, learn), expected)


def test_the_weight_gradient_of_xnor_is_that_of_a_convolution_with_binarised_weights() -> None:
    shape = Shape("3x3", kernel=(3, 3), stride=2, padding=1)
    op = make("xnor", shape)
    live, learn = masks(shape)
    x = images(shape)
    y = op(x, live, learn)
    g = torch.linspace(-1, 1, y.numel(), dtype=F64).view_as(y)
    y.backward(g)
    ours = op.weight.grad
    op.weight.grad = None
    weight = binary_weight(op.weight, live, learn, "exact")
    torch.nn.functional.conv2d(sign(x), weight, stride=2, padding=1).backward(g)
    torch.testing.assert_close(ours, op.weight.grad)


def test_input_scale_is_the_papers_box_filtered_mean_of_magnitudes() -> None:
    shape = Shape("3x3", batch=1, sources=3, destinations=2, kernel=(3, 3), padding=1, density=1)
    plain, scaled = make("xnor", shape), make("xnor", shape, input_scale=True)
    live, learn = masks(shape)
    x = images(shape)
    k = torch.zeros(shape.side, shape.side, dtype=F64)
    for i, j in itertools.product(range(shape.side), repeat=2):
        for a, b in itertools.product(range(i - 1, i + 2), range(j - 1, j + 2)):
            if 0 <= a < shape.side and 0 <= b < shape.side:
                k[i, j] += x[0, :, a, b].abs().sum() / 3 / 9
    torch.testing.assert_close(scaled(x, live, learn), plain(x, live, learn) * k)


def test_the_gradient_through_the_input_scale_is_exact() -> None:
    shape = Shape("3x3", sources=3, destinations=2, side=4, kernel=(3, 3), padding=1, density=1)
    op = make("xnor", shape, input_scale=True)
    live, learn = masks(shape)
    # Beyond ±1 the sign passes no gradient, so that all of it goes through K.
    x = (images(shape) * 3).requires_grad_()
    x.data += 1.5 * x.data.sign()
    assert torch.autograd.gradcheck(lambda v: op(v, live, learn), (x,))


def test_with_input_scale_every_source_is_used_while_any_edge_lives() -> None:
    op = make("xnor", Shape("row", sources=3, destinations=1), input_scale=True)
    assert op.used_sources(mask(0, 1, 0)).tolist() == [True] * 3
    assert op.used_sources(mask(0, 0, 0)).tolist() == [False] * 3


@pytest.mark.parametrize(
    ("steps", "arranged"),
    [
        (("norm", "act", "depthwise"), ("act", "depthwise", "norm")),
        (("norm", "act"), ("act", "norm")),
        (("norm", "act", "pool"), ("act", "norm", "pool")),
        (("act", "depthwise", "norm"), ("act", "depthwise", "norm")),
        (("act",), ("act",)),
        ((), ()),
    ],
)
def test_norm_comes_directly_before_the_sign_or_its_pool(
    steps: tuple[Step, ...], arranged: tuple[Step, ...]
) -> None:
    xnor = EDGE_OPS.get("xnor")
    assert xnor.arrange(steps, xnor.parse_options({})) == arranged
    assert xnor.arrange(arranged, xnor.parse_options({})) == arranged
    assert xnor.arrange(steps, xnor.parse_options({"block_order": "as-is"})) == steps


def test_a_dot_product_of_signs_is_n_minus_twice_the_differing_bits() -> None:
    n = 9
    op = make("xnor", Shape("row", sources=n, destinations=1, side=1))
    every = torch.ones_like(op.weight, dtype=torch.bool)
    alpha = row_scale(op.weight.detach(), every).item()
    packed = int.from_bytes(bytes(op.pack(every)["signs"].tolist()), "big") >> 7
    for bits in range(2**n):
        signs = row(*(1.0 if bits >> (n - 1 - i) & 1 else -1.0 for i in range(n)))
        expected = alpha * (n - 2 * (bits ^ packed).bit_count())
        assert op(signs, every, every).item() == pytest.approx(expected, abs=1e-12)


def test_binary_operators_cost_one_bit_an_edge_and_a_float_a_row() -> None:
    live = torch.zeros(3, 4, 3, 3, dtype=torch.bool)
    live[0, :, 0, 0] = True
    live[2, 1] = True
    shape = Shape("3x3", sources=4, destinations=3, kernel=(3, 3), stride=2, padding=1)
    bits = 13 + 2 * 32
    assert make("bwn", shape).cost(live, 10) == Cost(20, 130, weight_bits=bits)
    assert make("xnor", shape).cost(live, 10) == Cost(20, xnors=130, weight_bits=bits)
    scaled = make("xnor", shape, input_scale=True).cost(live, 10)
    means, box = 3 * 40, 8 * 10
    assert scaled == Cost(20 + 10 + 20, means + box, 130, weight_bits=bits)


def test_options_reach_an_operator_through_a_component() -> None:
    component = Component.model_validate({"name": "xnor", "input_scale": True})
    op = make(component.name, Shape("any"), **component.options)
    assert op.options.input_scale is True
    assert op.options.block_order == "norm-last"
