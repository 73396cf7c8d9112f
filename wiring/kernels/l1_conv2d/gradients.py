"""Gradients of the L1 distance: AdderNet's surrogates, and the exact ones (`sign`)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.kernels.backends import native, threads
from wiring.kernels.l1_conv2d import definition
from wiring.kernels.l1_conv2d.checks import (
    INPUT_MODES,
    WEIGHT_MODES,
    check_gradient,
    check_mode,
)
from wiring.kernels.l1_conv2d.layout import (
    address,
    floats_last,
    images_last,
    layer_of,
    new_images,
    on_gpu,
    wide_type,
)
from wiring.kernels.masked_conv2d import masked_conv2d_weight_gradient

# Up to this density live edges are taken one by one. On x86 the paths met at 0.67 to 0.97, or not
# before all edges live, by layer and instruction set.
SPARSE = 0.7

_native = native("l1_conv2d")


def _define_input_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    stride: int,
    padding: int,
    mode: str,
) -> Tensor:
    check_gradient(grad, x, weight, live, stride, padding)
    check_mode(mode, INPUT_MODES)
    wide = wide_type(x.dtype)
    result = definition.input_gradient(
        grad.to(wide), x.to(wide), weight.to(wide), live, stride, padding, mode
    )
    return images_last(result.to(x.dtype))


@custom_op("wiring::l1_input_gradient", mutates_args=())
def l1_input_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    stride: int,
    padding: int,
    mode: str,
) -> Tensor:
    """Σ_live grad · f(w - x): f clips to ±1 (`clipped`), takes the sign, or is nothing (`full`).

    grad [N, D, H', W']; returns [N, S, H, W]. Raises WiringError for what does not fit.
    """
    return _define_input_gradient(grad, x, weight, live, stride, padding, mode)


@l1_input_gradient.register_fake
def _(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return new_images(x, x.shape[1], (x.shape[2], x.shape[3]), x.dtype)


@l1_input_gradient.register_kernel("cpu")
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    stride: int,
    padding: int,
    mode: str,
) -> Tensor:
    kernel = _native()
    if kernel is None or x.dtype == torch.float64:
        return _define_input_gradient(grad, x, weight, live, stride, padding, mode)
    check_gradient(grad, x, weight, live, stride, padding)
    check_mode(mode, INPUT_MODES)
    images, grads, filters = floats_last(x), floats_last(grad), weight.float().contiguous()
    if mode == "full":
        result = _full_input_gradient(grads, images, filters, live, stride, padding)
        return images_last(result.to(x.dtype))
    mask = None if live is None else live.contiguous()
    result = new_images(images, x.shape[1], (x.shape[2], x.shape[3]), torch.float32)
    kernel.input_gradient(
        grads.data_ptr(),
        images.data_ptr(),
        filters.data_ptr(),
        address(mask),
        int(SPARSE * weight.numel()),
        layer_of(kernel, x, weight, stride, padding),
        INPUT_MODES.index(mode),
        result.data_ptr(),
        threads(),
    )
    return result.to(x.dtype)


def _full_input_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, live: Tensor | None, stride: int, padding: int
) -> Tensor:
    """Σ_live grad · w - x · Σ_live grad: two transposed convolutions."""
    if live is None:
        ones, total = torch.ones_like(weight[:1, :1]), grad.sum(dim=1, keepdim=True)
        mass = _transposed(total, x[:, :1], ones, stride, padding)
    else:
        weight = weight.where(live, 0)
        mass = _transposed(grad, x, live.to(weight.dtype), stride, padding)
    return _transposed(grad, x, weight, stride, padding) - x * mass


def _transposed(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """A convolution's gradient with respect to x."""
    return cast(
        Tensor,
        torch.ops.aten.convolution_backward(
            grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
            [True, False, False],
        )[0],
    )  # fmt: skip


def _define_weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    learn: Tensor | None,
    stride: int,
    padding: int,
    mode: str,
) -> Tensor:
    check_gradient(grad, x, weight, learn, stride, padding)
    check_mode(mode, WEIGHT_MODES)
    wide = wide_type(x.dtype)
    result = definition.weight_gradient(
        grad.to(wide), x.to(wide), weight.to(wide), learn, stride, padding, mode
    )
    return result.to(weight.dtype)


@custom_op("wiring::l1_weight_gradient", mutates_args=())
def l1_weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    learn: Tensor | None,
    stride: int,
    padding: int,
    mode: str,
) -> Tensor:
    """Σ over pixels of grad · (x - w), or of grad · sign(x - w), where `learn`; 0 elsewhere.

    grad [N, D, H', W']; returns [D, S, kh, kw], contiguous; mode `full` or `sign`. Raises
    WiringError for what does not fit.
    """
    return _define_weight_gradient(grad, x, weight, learn, stride, padding, mode)


@l1_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


@l1_weight_gradient.register_kernel("cpu")
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    learn: Tensor | None,
    stride: int,
    padding: int,
    mode: str,
) -> Tensor:
    kernel = _native()
    if kernel is None or x.dtype == torch.float64:
        return _define_weight_gradient(grad, x, weight, learn, stride, padding, mode)
    check_gradient(grad, x, weight, learn, stride, padding)
    check_mode(mode, WEIGHT_MODES)
    images, grads, filters = floats_last(x), floats_last(grad), weight.float().contiguous()
    mask = torch.ones_like(filters, dtype=torch.bool) if learn is None else learn.contiguous()
    if mode == "full":
        total = grads.sum(dim=(0, 2, 3))[:, None, None, None]
        result = masked_conv2d_weight_gradient(grads, images, mask, stride, padding)
        gradient: Tensor = result.sub_((filters * total).mul_(mask))
        return gradient.to(weight.dtype)
    result = torch.empty_like(filters)
    kernel.sign_weight_gradient(
        grads.data_ptr(),
        images.data_ptr(),
        filters.data_ptr(),
        mask.data_ptr(),
        layer_of(kernel, x, weight, stride, padding),
        result.data_ptr(),
        threads(),
    )
    return result.to(weight.dtype)


l1_input_gradient.register_kernel("cuda")(on_gpu("l1_input_gradient", _define_input_gradient))
l1_weight_gradient.register_kernel("cuda")(on_gpu("l1_weight_gradient", _define_weight_gradient))
