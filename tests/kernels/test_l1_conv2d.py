"""-Σ |w - x|: every instruction set against float64, its error, its layouts, its refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from l1_cases import DENSITIES, F64, LAYERS, Layer, layers, running, sets
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.l1_conv2d import PreparedL1, l1_conv2d, l1_linear

EPS = torch.finfo(torch.float32).eps
every_set = pytest.mark.parametrize("name", sets())
every_compiled_set = pytest.mark.parametrize("name", sets()[1:])
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


def magnitude(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """Σ|x| + Σ|w| of every output: what the error of a sum of |w - x| goes with."""
    return -layer.forward(x.abs(), -weight.abs(), None)


def check(layer: Layer, y: Tensor, x: Tensor, weight: Tensor, live: Tensor | None) -> None:
    expected = layer.forward(x, weight, live)
    assert y.shape == expected.shape
    # Measured, not derived: up to 6 on compiled sets, up to 2 on the definition.
    assert ((y - expected).abs() <= 8 * EPS * magnitude(layer, x, weight)).all()
    assert y.permute(0, 2, 3, 1).is_contiguous()


@every_set
@every_layer
@pytest.mark.parametrize("density", DENSITIES)
def test_sums_are_those_of_the_formula(name: str, layer: Layer, density: float | None) -> None:
    layer = replace(layer, density=density)
    x, weight, live = layer.tensors()
    for sparse in (0.0, 1.0):
        with running(name, sparse=sparse):
            check(layer, l1_conv2d(x, weight, live, *layer.steps), x, weight, live)


@settings(max_examples=150, deadline=None)
@given(layers())
def test_any_layer_is_that_of_the_formula_on_every_instruction_set(layer: Layer) -> None:
    x, weight, live = layer.tensors()
    for name in sets():
        for sparse in (0.0, 1.0):
            with running(name, sparse=sparse):
                check(layer, l1_conv2d(x, weight, live, *layer.steps), x, weight, live)


@every_set
@pytest.mark.parametrize("offset", [0.0, 100.0, -1000.0])
def test_long_sums_of_large_values_keep_the_error_of_a_dot_product(
    name: str, offset: float
) -> None:
    layer = Layer(images=1, sources=256, destinations=40, height=4, width=4, offset=offset)
    x, weight, _ = layer.tensors()
    with running(name):
        check(layer, l1_conv2d(x, weight, None, *layer.steps), x, weight, None)


@every_compiled_set
@pytest.mark.parametrize("density", [None, 0.1, 0.6])
def test_results_do_not_depend_on_threads_or_on_layouts(name: str, density: float | None) -> None:
    layer = Layer(sources=20, destinations=40, height=9, width=9, density=density)
    x, weight, live = layer.tensors()
    spread = torch.zeros(2, 20, 9, 18)[..., ::2].copy_(x)
    shifted = torch.zeros(x.numel() + 1)[1:].view_as(x).copy_(x)
    last = weight.contiguous(memory_format=torch.channels_last)
    with running(name):
        expected = l1_conv2d(x, weight, live, *layer.steps)
    for threads in (1, 2, 4):
        with running(name, threads=threads):
            for images in (x, x.contiguous(memory_format=torch.channels_last), spread, shifted):
                for filters in (weight, last):
                    assert torch.equal(l1_conv2d(images, filters, live, *layer.steps), expected)


@every_set
@pytest.mark.parametrize("density", [None, 0.2, 0.8])
def test_a_nan_in_a_live_window_reaches_the_output(name: str, density: float | None) -> None:
    layer = Layer(sources=20, destinations=40, density=density)
    x, weight, live = layer.tensors()
    x[0, 3, 2, 2] = torch.nan
    with running(name):
        y = l1_conv2d(x, weight, live, *layer.steps)
    assert torch.equal(y.isnan(), layer.forward(x, weight, live).isnan())


@every_set
def test_padding_is_a_pixel_of_value_zero_that_counts(name: str) -> None:
    weight = Layer(sources=3).tensors()[1]
    with running(name):
        y = l1_conv2d(torch.zeros(1, 3, 1, 1), weight, None, 1, 1)
    torch.testing.assert_close(y.flatten(), -weight.abs().sum(dim=(1, 2, 3)))


@every_set
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32_and_rounded_once(name: str, dtype: torch.dtype) -> None:
    layer = Layer(sources=40)
    x, weight, _ = layer.tensors(dtype)
    with running(name):
        y = l1_conv2d(x, weight, None, *layer.steps)
        assert torch.equal(y, l1_conv2d(x.float(), weight.float(), None, *layer.steps).to(dtype))


@every_set
@pytest.mark.parametrize("density", [None, 0.1, 0.7])
@pytest.mark.parametrize("sources", [3, 24])
def test_prepared_weights_give_the_same_bits(
    name: str, sources: int, density: float | None
) -> None:
    layer = Layer(sources=sources, destinations=21, stride=2, density=density)
    x, weight, live = layer.tensors()
    with running(name):
        prepared = PreparedL1(weight, live, stride=2, padding=1)
        assert torch.equal(prepared(x), l1_conv2d(x, weight, live, 2, 1))
        assert not prepared(x).requires_grad


@pytest.mark.parametrize("density", [None, 0.1, 0.7])
def test_weights_prepared_for_one_instruction_set_run_on_another(density: float | None) -> None:
    layer = Layer(sources=24, destinations=37, density=density)
    x, weight, live = layer.tensors()
    prepared = PreparedL1(weight, live, stride=1, padding=1)
    for name in sets():
        with running(name):
            check(layer, prepared(x), x, weight, live)


def test_rows_are_a_layer_without_positions() -> None:
    x, weight = torch.randn(2, 3, 10), torch.randn(4, 10)
    live = torch.rand(4, 10) < 0.5
    expected = -((weight - x[..., None, :]).abs() * live).sum(dim=-1)
    torch.testing.assert_close(l1_linear(x, weight, live), expected)


def bad_calls() -> dict[str, tuple[Any, ...]]:
    x, weight, live = Layer(density=0.5).tensors()
    assert live is not None
    return {
        "takes x": (x[0], weight, None, 1, 0),
        "3 channels where": (x[:, :3], weight, None, 1, 0),
        "a mask is bool": (x, weight, live.float(), 1, 0),
        "the weight's shape": (x, weight, live[:, :2], 1, 0),
        "stride must be": (x, weight, None, 0, 0),
        "padding at least 0": (x, weight, None, 1, -1),
        "does not fit": (x[:, :, :2], weight, None, 1, 0),
        "one floating type": (x, weight.double(), None, 1, 0),
        "floating type": (x.int(), weight.int(), None, 1, 0),
    }


@every_set
@pytest.mark.parametrize("message", bad_calls())
def test_what_does_not_fit_is_refused_in_a_sentence(name: str, message: str) -> None:
    with running(name), pytest.raises(WiringError, match=message):
        l1_conv2d(*bad_calls()[message])


def test_prepared_weights_refuse_what_does_not_fit() -> None:
    x, weight, live = Layer(density=0.5).tensors()
    assert live is not None
    with pytest.raises(WiringError, match="float32"):
        PreparedL1(weight.double())
    with pytest.raises(WiringError, match="a mask is bool"):
        PreparedL1(weight, live[:2])
    for images in (x[:, :2], x.double(), x[0]):
        with pytest.raises(WiringError, match="take"):
            PreparedL1(weight)(images)
    with pytest.raises(WiringError, match="does not fit"):
        PreparedL1(weight)(x[:, :, :2])


def test_the_operation_is_a_good_citizen_of_pytorch() -> None:
    layer = Layer(images=1, sources=3, destinations=2, height=4, width=4)
    for density in (None, 0.5):
        x, weight, live = replace(layer, density=density).tensors()
        x.requires_grad_()
        weight.requires_grad_()
        torch.library.opcheck(l1_conv2d, (x, weight, live, 2, 1))


def test_autocast_computes_in_float32() -> None:
    x, weight, _ = Layer().tensors()
    with torch.autocast("cpu", torch.bfloat16):
        y = l1_conv2d(x.bfloat16(), weight, None, 1, 1)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, l1_conv2d(x.bfloat16().float(), weight, None, 1, 1))


def test_vmap_runs_over_images_and_over_filters() -> None:
    x, weight, _ = Layer().tensors()
    xs, weights = torch.stack([x, 2 * x]), torch.stack([weight, 3 * weight], dim=1)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = l1_conv2d(x, weight, None, 1, 1)
        return y

    over_images = torch.vmap(run, (0, None))(xs, weight)
    torch.testing.assert_close(over_images[1], run(2 * x, weight))
    over_both = torch.vmap(run, (0, 1))(xs, weights)
    torch.testing.assert_close(over_both[1], run(2 * x, 3 * weight))


def test_float64_is_computed_in_float64() -> None:
    layer = Layer(offset=1e6)
    x, weight, _ = layer.tensors(F64)
    torch.testing.assert_close(
        l1_conv2d(x, weight, None, 1, 1), layer.forward(x, weight, None), rtol=1e-12, atol=0
    )
