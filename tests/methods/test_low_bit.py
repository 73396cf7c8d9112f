"""Bits without scales, and a few bits a number: bnn, binary-connect and dorefa against their
papers' formulas; the kernels that count bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from low_bit_cases import F64, LAYER, convolved, every, gradients, row, summed
from method_cases import Shape, images, make, masks
from small_networks import images as pictures
from small_networks import mixed_topology, spec, trained
from torch import Tensor

import wiring
from wiring.cost import Cost
from wiring.errors import ConfigError
from wiring.graph.binary import sign
from wiring.graph.edges import EDGE_OPS, EdgeOp, Epilogue

ROW = Shape("row", sources=5, destinations=1, side=1)
WIDE = Shape("wide", sources=70, destinations=6, side=6, kernel=(3, 3), padding=1, density=0.7)
WHOLE = Shape("whole", sources=64, destinations=5, side=6, kernel=(3, 3), padding=1, density=1.0)


# -- bits without a scale -------------------------------------------------------------------


@pytest.mark.parametrize("h", [1.0, 0.25])
def test_binary_connect_sums_inputs_with_the_signs_times_h(h: float) -> None:
    op, (live, learn) = make("binary-connect", LAYER, h=h), masks(LAYER)
    x = images(LAYER)
    expected = summed(op, x, h * sign(op.weight) * live)
    y = op(x, live, learn)
    torch.testing.assert_close(y, expected.view_as(y), rtol=1e-12, atol=1e-12)
    g, to_x, to_weight = gradients(op, x, live, learn)
    wanted = convolved(op, g, x, h * sign(op.weight) * live)
    torch.testing.assert_close(to_x, wanted[0])
    torch.testing.assert_close(to_weight, wanted[1] * learn)


def test_bnn_sums_signs_of_both_and_clips_the_gradient_of_its_inputs() -> None:
    op, (live, learn) = make("bnn", LAYER), masks(LAYER)
    x = images(LAYER)
    y = op(x, live, learn)
    assert torch.equal(y, summed(op, sign(x), sign(op.weight) * live).view_as(y))
    g, to_x, to_weight = gradients(op, x, live, learn)
    wanted = convolved(op, g, sign(x), sign(op.weight) * live)
    torch.testing.assert_close(to_x, wanted[0] * (x.abs() < 1))
    torch.testing.assert_close(to_weight, wanted[1] * learn)


def test_stochastic_bits_are_drawn_with_the_hard_sigmoids_probability() -> None:
    h = 0.5
    op = make("binary-connect", Shape("draw", sources=6, destinations=1), h=h, stochastic=True)
    op.weight.data.copy_(row(-0.7, -0.5, -0.25, 0.0, 0.25, 0.6))
    torch.manual_seed(0)
    draws = torch.stack([op.bits().flatten() for _ in range(4000)])  # type: ignore[operator]
    assert set(draws.unique().tolist()) == {-1.0, 1.0}
    share = (draws > 0).double().mean(dim=0)
    expected = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0], dtype=F64)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.03)
    assert share[1] == 0
    assert share[5] == 1


def test_stochastic_bits_pass_gradients_as_drawn_and_evaluation_takes_signs() -> None:
    op, (live, learn) = make("binary-connect", LAYER, stochastic=True), masks(LAYER)
    plain = make("binary-connect", LAYER)
    x = images(LAYER)
    torch.manual_seed(3)
    bits = op.bits()  # type: ignore[operator]
    assert not torch.equal(bits, sign(op.weight))
    torch.manual_seed(3)
    g, to_x, to_weight = gradients(op, x, live, learn)
    wanted = convolved(op, g, x, bits * live)
    torch.testing.assert_close(to_x, wanted[0])
    torch.testing.assert_close(to_weight, wanted[1] * learn)
    assert torch.equal(op.eval()(x, live, learn), plain(x, live, learn))


@pytest.mark.parametrize(
    ("name", "options", "h"), [("bnn", {}, 1), ("binary-connect", {"h": 0.5}, 0.5)]
)
def test_weights_start_within_h_and_are_clipped_to_it_where_they_learn(
    name: str, options: dict[str, Any], h: float
) -> None:
    torch.manual_seed(0)
    fresh = EDGE_OPS.get(name)(50, 40, options=options)
    assert 0.98 * h < fresh.weight.abs().max() <= h
    op, (live, learn) = make(name, LAYER, **options), masks(LAYER)
    before = op.weight.detach().clone()
    op.after_step(live, learn)
    assert torch.equal(op.weight, torch.where(learn, before.clamp(-h, h), before))


@pytest.mark.parametrize("name", ["bnn", "binary-connect"])
def test_the_step_is_scaled_by_the_initialisation_of_glorot(name: str) -> None:
    op, (live, learn) = make(name, LAYER), masks(LAYER)
    _, _, grad = gradients(op, images(LAYER), live, learn)
    before = grad.clone()
    op.scale_gradient(learn)
    fan_in, fan_out = 7 * 9, 5 * 9
    torch.testing.assert_close(op.weight.grad, before / math.sqrt(1.5 / (fan_in + fan_out)))
    plain = make(name, LAYER, scale_gradient=False)
    gradients(plain, images(LAYER), live, learn)
    plain.scale_gradient(learn)
    torch.testing.assert_close(plain.weight.grad, before)


@pytest.mark.parametrize("name", ["bnn", "binary-connect"])
def test_a_trained_layers_signs_are_taken_over_with_the_largest_weight_at_h(name: str) -> None:
    op = make(name, LAYER)
    weight = 0.01 * torch.randn(op.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    op.approximate(weight)
    assert torch.equal(sign(op.weight), sign(weight))
    assert op.weight.abs().max().item() == pytest.approx(1.0)
    op.approximate(torch.zeros_like(weight))
    assert not op.weight.any()


def test_bits_without_a_scale_cost_one_bit_an_edge_and_no_product() -> None:
    live = torch.zeros(3, 4, 3, 3, dtype=torch.bool)
    live[0, :, 0, 0] = live[2, 1] = True
    shape = Shape("3x3", sources=4, destinations=3, kernel=(3, 3))
    assert make("bnn", shape).cost(live, 10) == Cost(xnors=130, weight_bits=13)
    assert make("bnn", shape).input_bits == 1
    plain = make("binary-connect", shape)
    assert plain.cost(live, 10) == Cost(additions=130, weight_bits=13)
    assert plain.input_bits == 32
    scaled = make("binary-connect", shape, h=0.5)
    assert scaled.cost(live, 10) == Cost(20, 130, weight_bits=13)


# -- kernels that count bits ----------------------------------------------------------------

COUNTING = [
    ("bnn", {}, 0),
    ("bitwise", {}, 1),
    *(("dorefa", {"weight_bits": w, "activation_bits": a}, 0) for w, a in ((1, 2), (3, 4), (8, 5))),
]


@pytest.mark.parametrize(("name", "options", "stage"), COUNTING)
@pytest.mark.parametrize("shape", [WIDE, WHOLE], ids=lambda shape: shape.name)
def test_a_kernel_that_counts_bits_returns_what_the_float_path_does(
    name: str, options: dict[str, Any], stage: int, shape: Shape
) -> None:
    op = make(name, shape, stage=stage, **options).float().eval()
    live, _ = masks(shape)
    op.after_step(live, live)
    x = images(shape).float()
    expected = op(x, live, live)
    forms = op.candidates(live, Epilogue())
    assert len(forms) == (2 if name == "dorefa" else 1)
    for form in forms.values():
        assert torch.equal(form(x), expected)
    shift = torch.linspace(-1, 1, shape.destinations)
    epilogue = Epilogue(shift=shift, relu=True)
    for form in op.candidates(live, epilogue).values():
        torch.testing.assert_close(form(x), (expected + shift.view(1, -1, 1, 1)).relu())


@pytest.mark.parametrize("name", ["bnn", "bitwise"])
def test_a_compiled_network_of_counts_is_the_float_one_bit_for_bit(name: str) -> None:
    network = trained(spec(mixed_topology(budgets=(60, 120, 20)), name))
    compiled = wiring.compile(network, batch=6, cache=False)
    assert all({"packed", "packed words"} <= set(choice.us) for choice in compiled.choices())
    for kernel in ("packed", "packed words"):
        pinned = {choice.bundle: kernel for choice in compiled.choices()}
        again = wiring.compile(network, batch=6, cache=False, kernels=pinned)
        assert torch.equal(again(pictures()), network(pictures()))


# -- a few bits a number --------------------------------------------------------------------


def quantised(x: Tensor, bits: int) -> Tensor:
    """q_k of the paper."""
    levels = 2**bits - 1
    return (levels * x).round() / levels


def dorefa(shape: Shape = LAYER, **options: int) -> tuple[EdgeOp, Tensor, Tensor]:
    """An operator whose extent is that of its live edges."""
    op, (live, learn) = make("dorefa", shape, **options), masks(shape)
    op.after_step(live, learn)
    return op, live, learn


def dorefa_weight(op: EdgeOp, live: Tensor, bits: int) -> Tensor:
    """The paper's formula on the live edges of a layer."""
    weight = op.weight.detach()
    if bits == 1:
        return weight[live].abs().mean() * sign(weight) * live
    squashed = weight.tanh()
    inside = squashed / (2 * squashed[live].abs().max()) + 0.5
    return (2 * quantised(inside.clamp(0, 1), bits) - 1) * live


@pytest.mark.parametrize("weight_bits", [1, 2, 5])
@pytest.mark.parametrize("activation_bits", [1, 3, 32])
def test_dorefa_is_the_convolution_of_the_papers_quantised_numbers(
    weight_bits: int, activation_bits: int
) -> None:
    op, live, learn = dorefa(weight_bits=weight_bits, activation_bits=activation_bits)
    x = images(LAYER)
    read = x if activation_bits == 32 else quantised(x.clamp(0, 1), activation_bits)
    y = op(x, live, learn)
    expected = summed(op, read, dorefa_weight(op, live, weight_bits)).view_as(y)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert op.input_bits == activation_bits
    assert op.sensitive == (activation_bits < 32)


@pytest.mark.parametrize("weight_bits", [1, 3])
def test_dorefas_gradients_pass_straight_through_rounding(weight_bits: int) -> None:
    op, live, learn = dorefa(weight_bits=weight_bits, activation_bits=2)
    x = images(LAYER)
    g, to_x, to_weight = gradients(op, x, live, learn)
    read, weight = quantised(x.clamp(0, 1), 2), dorefa_weight(op, live, weight_bits)
    wanted = convolved(op, g, read, weight)
    torch.testing.assert_close(to_x, wanted[0] * ((x >= 0) & (x <= 1)))
    passed = wanted[1] * learn
    if weight_bits > 1:
        squashed = op.weight.detach().tanh()
        passed = passed * (1 - squashed.square()) / squashed[live].abs().max()
    torch.testing.assert_close(to_weight, passed)


@pytest.mark.parametrize("bits", [1, 4])
def test_quantised_gradients_lie_on_each_samples_grid_and_are_right_on_average(bits: int) -> None:
    op = make("dorefa", ROW, activation_bits=32, weight_bits=32, gradient_bits=bits)
    live = every(op)
    op.weight.data.fill_(1.0)
    drawn = row(0.9, -0.05, 0.3).view(3, 1, 1, 1) * torch.tensor([1.0, 0.5, -0.7, 0.0], dtype=F64)
    x = torch.zeros(3, 5, 1, 4, dtype=F64, requires_grad=True)
    torch.manual_seed(1)
    found = [torch.autograd.grad(op(x, live, live), x, drawn)[0][:, :1].clone() for _ in range(600)]
    reach = drawn.abs().amax(dim=(1, 2, 3), keepdim=True)
    for one in found[:20]:
        levels = (one / (2 * reach) + 0.5) * (2**bits - 1)
        torch.testing.assert_close(levels, levels.round())
        assert (one.abs() <= reach + 1e-12).all()
    mean = torch.stack(found).mean(dim=0)
    torch.testing.assert_close(mean, drawn, rtol=0, atol=0.12 if bits == 1 else 0.02)
    assert torch.autograd.grad(op(x, live, live), x, torch.zeros_like(drawn))[0].abs().max() == 0
    op.eval()
    exact = torch.autograd.grad(op(x, live, live), x, drawn)[0][:, :1]
    assert torch.equal(exact, drawn)


def test_with_32_bits_everywhere_dorefa_is_the_ordinary_convolution() -> None:
    op, live, learn = dorefa(weight_bits=32, activation_bits=32)
    dense = make("dense", LAYER)
    x = images(LAYER)
    torch.testing.assert_close(op(x, live, learn), dense(x, live, learn))
    assert op.cost(live, 10) == dense.cost(live, 10)


def test_dorefas_scale_is_that_of_the_edges_that_acted_and_survives_compaction() -> None:
    op, live, learn = dorefa(weight_bits=1)
    mean = op.weight.detach()[live].abs().mean()
    torch.testing.assert_close(op.extent, mean)
    small = EDGE_OPS.get("dorefa")(4, 2, kernel=(3, 3), stride=2, padding=1).double()
    small.load_state_dict(op.restrict(torch.tensor([1, 3]), torch.tensor([0, 2, 3, 6])))
    torch.testing.assert_close(small.extent, mean)
    op.after_step(live & False, learn)
    torch.testing.assert_close(op.extent, mean)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ((1, 2), Cost(20, xnors=260, weight_bits=13 + 32)),
        ((4, 3), Cost(20, xnors=12 * 130, weight_bits=4 * 13)),
        ((1, 32), Cost(20, 130, weight_bits=13 + 32)),
        ((32, 1), Cost(additions=130, weight_bits=32 * 13)),
        ((32, 4), Cost(130, 130, weight_bits=32 * 13)),
        ((2, 32), Cost(130, 130, weight_bits=2 * 13)),
    ],
)
def test_dorefa_costs_bits_times_bits(bits: tuple[int, int], expected: Cost) -> None:
    live = torch.zeros(3, 4, 3, 3, dtype=torch.bool)
    live[0, :, 0, 0] = live[2, 1] = True
    shape = Shape("3x3", sources=4, destinations=3, kernel=(3, 3))
    op = make("dorefa", shape, weight_bits=bits[0], activation_bits=bits[1])
    assert op.cost(live, 10) == expected
    stored = op.pack(live)
    size = 8 * sum(t.numel() * t.element_size() for t in stored.values())
    assert 0 <= size - expected.weight_bits < 8


@pytest.mark.parametrize("bits", [1, 2, 3, 7, 8, 32])
def test_dorefas_levels_come_back_from_their_bits(bits: int) -> None:
    op, live, learn = dorefa(weight_bits=bits)
    twin = make("dorefa", LAYER, weight_bits=bits)
    stored = op.float().pack(live)
    twin.float().unpack(stored, live)
    x = images(LAYER).float()
    assert torch.equal(op(x, live, learn), twin(x, live, learn))
    again = twin.pack(live)
    assert all(torch.equal(tensor, again[name]) for name, tensor in stored.items())


def test_numbers_of_bits_that_no_plane_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match="weight_bits"):
        make("dorefa", LAYER, weight_bits=9)


@pytest.mark.parametrize("name", ["bnn", "bitwise"])
def test_the_norm_comes_directly_before_signs_unless_told_otherwise(name: str) -> None:
    cls = EDGE_OPS.get(name)
    steps = ("norm", "act", "pool")
    assert cls.arrange(steps, cls.parse_options({})) == ("act", "norm", "pool")
    assert cls.arrange(steps, cls.parse_options({"block_order": "as-is"})) == steps
