"""One-bit weights with real inputs: the sums, their gradients, and what rests in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from packed_cases import SETS, Layer, Tensors, layers, live_signs, poisoned, tensors, threads
from torch import Tensor
from torch.library import opcheck

from wiring.errors import WiringError
from wiring.kernels import backends
from wiring.kernels.xnor_conv2d import PreparedBwn, bwn_conv2d, bwn_linear

LAYERS = (
    Layer(),
    Layer(density=0.3),
    Layer(channels=256, destinations=64, height=14, width=14),
    Layer(channels=127, destinations=40, kernel=(1, 1), padding=0, height=9),
    Layer(channels=64, destinations=33, stride=2, padding=2),
)


def expected(layer: Layer, case: Tensors) -> Tensor:
    settings = {"stride": layer.stride, "padding": layer.padding}
    y = F.conv2d(case.x.double(), live_signs(case), **settings)
    return y * case.alpha.double().view(1, -1, 1, 1)


def close(y: Tensor, wanted: Tensor, layer: Layer) -> None:
    """Within the rounding of a sum of that many float32 of size 1."""
    terms = layer.channels * layer.kernel[0] * layer.kernel[1]
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=2e-7 * terms)


@SETS
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_sums_signed_inputs(instructions: str, layer: Layer) -> None:
    case = tensors(layer)
    last = case.x.contiguous(memory_format=torch.channels_last)
    with backends.use(instructions), poisoned():
        prepared = PreparedBwn(
            *case.words, layer.channels, stride=layer.stride, padding=layer.padding
        )
        for x in (case.x, last, case.x.transpose(2, 3).contiguous().transpose(2, 3)):
            y = bwn_conv2d(x, *case.words, layer.stride, layer.padding)
            close(y, expected(layer, case), layer)
            assert y.permute(0, 2, 3, 1).is_contiguous()
            assert torch.equal(prepared(x), y)


@SETS
@given(layer=layers())
@settings(deadline=None, max_examples=20)
def test_random_layers_are_the_float64_convolution(instructions: str, layer: Layer) -> None:
    case = tensors(layer)
    with backends.use(instructions), poisoned():
        y = bwn_conv2d(case.x, *case.words, layer.stride, layer.padding)
        close(y, expected(layer, case), layer)


@SETS
def test_a_dead_edge_adds_exactly_nothing(instructions: str) -> None:
    layer = Layer(channels=66, density=0.5)
    case = tensors(layer)
    assert case.live is not None
    case.live[:, 7] = False
    with backends.use(instructions):
        before = bwn_conv2d(case.x, *case.words, 1, 1)
        case.x[:, 7] = 1e30
        assert torch.equal(bwn_conv2d(case.x, *case.words, 1, 1), before)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_result_does_not_depend_on_the_number_of_threads(number: int) -> None:
    layer = LAYERS[2]
    case = tensors(layer)
    with threads(1):
        alone = bwn_conv2d(case.x, *case.words, 1, 1)
    with threads(number):
        close(bwn_conv2d(case.x, *case.words, 1, 1), alone.double(), layer)


@pytest.mark.parametrize("density", [None, 0.5])
def test_gradients_of_inputs_and_scales_are_exact(density: float | None) -> None:
    layer = Layer(channels=3, destinations=2, height=4, width=4, density=density)
    case = tensors(layer)
    weight, live, alpha = case.words
    x = case.x.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bwn_conv2d(x, weight, live, alpha, 2, 1), (x,))
    alpha = alpha.clone().requires_grad_()
    y = bwn_conv2d(case.x, weight, live, alpha, 2, 1)
    (slope,) = torch.autograd.grad(y.square().sum() / 2, alpha)
    torch.testing.assert_close(slope, (y * y).sum(dim=(0, 2, 3)) / alpha)


@pytest.mark.parametrize("density", [None, 0.5])
def test_pytorchs_own_checks_of_the_operation_pass(density: float | None) -> None:
    case = tensors(Layer(density=density))
    weight, live, alpha = case.words
    for wanted in (False, True):
        x, a = case.x.clone().requires_grad_(wanted), alpha.clone().requires_grad_(wanted)
        opcheck(bwn_conv2d, (x, weight, live, a, 2, 1))


def test_it_compiles_forward_and_backward_without_graph_breaks() -> None:
    case = tensors(Layer())
    x = case.x.clone().requires_grad_()
    words = case.words
    torch.compile(lambda x: bwn_conv2d(x, *words, 1, 1), fullgraph=True)(
        x
    ).square().sum().backward()
    compiled, x.grad = x.grad, None
    bwn_conv2d(x, *words, 1, 1).square().sum().backward()
    torch.testing.assert_close(compiled, x.grad)


def test_autocast_computes_in_float32() -> None:
    case = tensors(Layer())
    with torch.autocast("cpu", torch.bfloat16):
        y = bwn_conv2d(case.x.bfloat16(), *case.words, 1, 1)
    assert y.dtype == torch.float32


def test_the_linear_form_is_a_matrix_product() -> None:
    case = tensors(Layer(images=5, height=1, width=1, kernel=(1, 1), padding=0, density=0.5))
    weight, live, alpha = case.words
    assert live is not None
    y = bwn_linear(case.x.flatten(1), weight.flatten(1), live.flatten(1), alpha)
    wanted = case.x.flatten(1).double() @ (live_signs(case).flatten(1).T * alpha.double())
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_prepared_layer_keeps_one_bit_a_weight_and_its_scales() -> None:
    prepared = PreparedBwn(*tensors(Layer(channels=256, destinations=64)).words, 256)
    kept = {
        part.data_ptr(): part.untyped_storage().nbytes()
        for value in vars(prepared).values()
        for part in (value if isinstance(value, tuple) else getattr(value, "__dict__", {}).values())
        if isinstance(part, Tensor)
    }
    assert sum(kept.values()) == 64 * 256 * 9 // 8 + 4 * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 70, 6)}, "inputs must be float"),
        ({"x": torch.zeros(2, 70, 6, 5, dtype=torch.int32)}, "inputs must be float"),
        ({"x": torch.zeros(2, 129, 6, 5)}, "weight words of 129 channels"),
        ({"alpha": torch.ones(3)}, "alpha must be float32"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"padding": 0, "x": torch.zeros(2, 70, 2, 2)}, "a kernel must have"),
    ],
)
def test_misuse_is_a_sentence(change: dict[str, Any], message: str) -> None:
    weight, live, alpha = tensors(Layer()).words
    arguments = {"x": torch.zeros(2, 70, 6, 5), "weight": weight, "live": live, "alpha": alpha}
    with pytest.raises(WiringError, match=message):
        bwn_conv2d(**{**arguments, "stride": 1, "padding": 1, **change})
