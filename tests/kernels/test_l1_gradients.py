"""Gradients of -Σ |w - x|: exact and AdderNet's, against float64, and how much they hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from l1_cases import DENSITIES, F64, LAYERS, Layer, layers, running, sets
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wiring.errors import WiringError
from wiring.kernels.l1_conv2d import l1_conv2d, l1_input_gradient, l1_weight_gradient

every_set = pytest.mark.parametrize("name", sets())
every_compiled_set = pytest.mark.parametrize("name", sets()[1:])
INPUT_MODES = ("clipped", "sign", "full")
WEIGHT_MODES = ("full", "sign")


def check(layer: Layer, *, modes: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    x, weight, mask = layer.tensors()
    grad = layer.gradient()
    for mode in modes[0]:
        result = l1_input_gradient(grad, x, weight, mask, *layer.steps, mode)
        expected = layer.input_gradient(grad, x, weight, mask, mode)
        # The largest sum that a term of this size can make.
        largest = 1 if mode != "full" else 10 + 2 * abs(layer.offset)
        scale = grad.abs().sum(dim=1).amax() if grad.numel() else torch.tensor(0.0)
        atol = 1e-6 * largest * float(scale) * weight[0, 0].numel()
        torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=atol)
        assert result.permute(0, 2, 3, 1).is_contiguous()
    for mode in modes[1]:
        result = l1_weight_gradient(grad, x, weight, mask, *layer.steps, mode)
        expected = layer.weight_gradient(grad, x, weight, mask, mode)
        largest = 1 if mode != "full" else 10 + 2 * abs(layer.offset)
        scale = grad.abs().sum(dim=(0, 2, 3)).amax()
        torch.testing.assert_close(
            result.double(), expected, rtol=1e-6, atol=1e-6 * largest * float(scale)
        )
        assert result.is_contiguous()


@every_set
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
def test_gradients_are_those_of_the_formulas(
    name: str, layer: Layer, density: float | None
) -> None:
    layer = replace(layer, density=density)
    for sparse in (0.0, 1.0):
        with running(name, sparse=sparse):
            check(layer, modes=(INPUT_MODES, WEIGHT_MODES))


@settings(max_examples=60, deadline=None)
@given(layers())
def test_gradients_of_any_layer_are_those_of_the_formulas(layer: Layer) -> None:
    for name in sets():
        for sparse in (0.0, 1.0):
            with running(name, sparse=sparse):
                check(layer, modes=(INPUT_MODES, WEIGHT_MODES))


@every_set
def test_values_that_are_equal_or_nearly_so_have_the_right_sign(name: str) -> None:
    weight = torch.tensor([0.5, 0.0, 1.0, 2.0**-149, -(2.0**-149)]).view(1, 5, 1, 1)
    x = torch.tensor([0.5, 0.0, 2.0, 0.0, 0.0]).view(1, 5, 1, 1)
    one = torch.ones(1, 1, 1, 1)
    with running(name):
        to_x = l1_input_gradient(one, x, weight, None, 1, 0, "sign")
        to_w = l1_weight_gradient(one, x, weight, None, 1, 0, "sign")
    assert to_x.flatten().tolist() == [0, 0, -1, 1, -1]
    assert to_w.flatten().tolist() == [0, 0, 1, -1, 1]


@every_compiled_set
@pytest.mark.parametrize("density", [None, 0.1, 0.7])
def test_gradients_do_not_depend_on_threads_or_layouts(name: str, density: float | None) -> None:
    layer = Layer(sources=20, destinations=40, stride=2, height=19, width=19, density=density)
    x, weight, mask = layer.tensors()
    grad = layer.gradient()
    last = [t.contiguous(memory_format=torch.channels_last) for t in (grad, x, weight)]
    results = []
    for threads in (1, 2, 4):
        for tensors in ((grad, x, weight), last):
            with running(name, threads=threads):
                results.append(
                    [
                        *(l1_input_gradient(*tensors, mask, 2, 1, m) for m in ("clipped", "sign")),
                        l1_weight_gradient(*tensors, mask, 2, 1, "sign"),
                    ]
                )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@every_set
def test_a_nan_pixel_has_a_nan_gradient_and_no_other_has(name: str) -> None:
    layer = Layer(sources=20)
    x, weight, _ = layer.tensors()
    x[1, 4, 2, 3] = torch.nan
    with running(name):
        result = l1_input_gradient(layer.gradient(), x, weight, None, 1, 1, "clipped")
    assert torch.equal(result.isnan(), x.isnan())


@pytest.mark.parametrize("density", [None, 0.5])
def test_derivatives_are_those_of_finite_differences(density: float | None) -> None:
    layer = Layer(images=1, sources=2, destinations=3, height=4, width=4, density=density)
    x, weight, live = layer.tensors(F64)
    x.requires_grad_()
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: l1_conv2d(x, w, live, 2, 1), (x, weight))


@every_set
@pytest.mark.parametrize("density", [None, 0.2])
def test_backward_gives_the_exact_gradients(name: str, density: float | None) -> None:
    layer = Layer(sources=20, destinations=9, density=density)
    x, weight, live = layer.tensors()
    grad = layer.gradient()
    with running(name):
        x.requires_grad_()
        weight.requires_grad_()
        l1_conv2d(x, weight, live, 1, 1).backward(grad)
    expected = layer.input_gradient(grad, x.detach(), weight.detach(), live, "sign")
    torch.testing.assert_close(x.grad, expected.float(), rtol=1e-4, atol=1e-4)
    expected = layer.weight_gradient(grad, x.detach(), weight.detach(), live, "sign")
    torch.testing.assert_close(weight.grad, expected.float(), rtol=1e-4, atol=1e-4)


def test_the_gradients_are_good_citizens_of_pytorch() -> None:
    layer = Layer(images=1, sources=3, destinations=2, height=4, width=4, density=0.5)
    x, weight, mask = layer.tensors()
    grad = layer.gradient()
    for mode in INPUT_MODES:
        torch.library.opcheck(l1_input_gradient, (grad, x, weight, mask, 1, 1, mode))
    for mode in WEIGHT_MODES:
        torch.library.opcheck(l1_weight_gradient, (grad, x, weight, mask, 1, 1, mode))


def test_compiled_whole_it_trains_as_it_does_eagerly() -> None:
    layer = Layer(images=1, sources=3, destinations=2, height=4, width=4, density=0.5)
    results = []
    for run in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        x, weight, live = layer.tensors()
        x.requires_grad_()
        weight.requires_grad_()
        y = run(lambda x, w, live=live: l1_conv2d(x, w, live, 1, 1).square())(x, weight)
        y.sum().backward()
        results.append((y, x.grad, weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@every_set
@pytest.mark.parametrize("density", [None, 0.3])
def test_no_array_of_edges_times_pixels_is_made(name: str, density: float | None) -> None:
    layer = Layer(sources=32, destinations=48, height=16, width=16, density=density)
    x, weight, mask = layer.tensors()
    grad = layer.gradient()
    with running(name), Largest() as largest:
        l1_conv2d(x, weight, mask, 1, 1)
        for mode in INPUT_MODES:
            l1_input_gradient(grad, x, weight, mask, 1, 1, mode)
        for mode in WEIGHT_MODES:
            l1_weight_gradient(grad, x, weight, mask, 1, 1, mode)
    assert largest.bytes <= max(2 * 4 * grad.numel(), 4 << 18)
    assert largest.bytes < 4 * weight.numel() * grad.numel() / 48 / 20


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    x, weight, mask = Layer(density=0.5).tensors()
    grad = Layer().gradient()
    with pytest.raises(WiringError, match="one of clipped, sign, full, got 'half'"):
        l1_input_gradient(grad, x, weight, mask, 1, 1, "half")
    with pytest.raises(WiringError, match="one of full, sign"):
        l1_weight_gradient(grad, x, weight, mask, 1, 1, "clipped")
    for run, mode in ((l1_input_gradient, "clipped"), (l1_weight_gradient, "full")):
        with pytest.raises(WiringError, match="gradient must be of shape"):
            run(grad[:, :2], x, weight, mask, 1, 1, mode)
        with pytest.raises(WiringError, match="floating type"):
            run(grad.double(), x, weight, mask, 1, 1, mode)
        with pytest.raises(WiringError, match="mask"):
            run(grad, x, weight, mask[:1], 1, 1, mode)
