"""y = -Σ_live |w - x|, the L1 distance of every window to every filter, and its gradients.

x [N, S, H, W]; weight [D, S, kh, kw]; live, learn bool like the weight, None for all; results are
channels_last. Padding is a pixel of value 0 that counts: |w - 0|. No array of D·S·kh·kw·H'·W'
elements is ever made. Half types are computed in float32 and rounded once.

The compiled forward uses |x - w| = 2 max(x, w) - x - w: its error goes with Σ|x| + Σ|w|, as a dot
product's goes with Σ|x·w|, and an infinite x or w gives NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads
from wiring.kernels.l1_conv2d import definition
from wiring.kernels.l1_conv2d.checks import check_floats, check_shapes
from wiring.kernels.l1_conv2d.gradients import l1_input_gradient, l1_weight_gradient
from wiring.kernels.l1_conv2d.layout import (
    address,
    floats_last,
    images_last,
    layer_of,
    new_images,
    on_gpu,
    wide_type,
)

# Up to this density live edges are taken one by one. On x86 the paths met at 0.67 to 0.97, or not
# before all edges live, by layer and instruction set.
SPARSE = 0.7

_native = native("l1_conv2d")


def _define(
    x: Tensor, weight: Tensor, live: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    check_floats(x, weight)
    check_shapes(x, weight, live, stride, padding)
    wide = wide_type(x.dtype)
    y = definition.sums(x.to(wide), weight.to(wide), live, stride, padding)
    return images_last(y.to(x.dtype))


@custom_op("wiring::l1_conv2d", mutates_args=())
def l1_conv2d(
    x: Tensor, weight: Tensor, live: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """-Σ_live |w - x|; returns [N, D, H', W'] of x's type. Its gradients are the exact ones.

    Raises WiringError for shapes, types or a mask that do not fit.
    """
    return _define(x, weight, live, stride, padding)


@l1_conv2d.register_fake
def _(
    x: Tensor, weight: Tensor, live: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    return new_images(x, weight.shape[0], check_shapes(x, weight, live, stride, padding), x.dtype)


@l1_conv2d.register_kernel("cpu")
def _(
    x: Tensor, weight: Tensor, live: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    kernel = _native()
    if kernel is None or x.dtype == torch.float64:
        return _define(x, weight, live, stride, padding)
    check_floats(x, weight)
    size = check_shapes(x, weight, live, stride, padding)
    images, filters = floats_last(x), weight.float().contiguous()
    mask = None if live is None else live.contiguous()
    y = new_images(images, len(weight), size, torch.float32)
    kernel.forward(
        images.data_ptr(),
        filters.data_ptr(),
        address(mask),
        int(SPARSE * weight.numel()),
        layer_of(kernel, x, weight, stride, padding),
        y.data_ptr(),
        threads(),
    )
    return y.to(x.dtype)


@l1_conv2d.register_kernel("cuda")
def _(
    x: Tensor, weight: Tensor, live: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    check_floats(x, weight)
    check_shapes(x, weight, live, stride, padding)
    return on_gpu("l1_conv2d", _define)(x, weight, live, stride, padding)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, live, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight, live)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, live = ctx.saved_tensors
    grad = grad.contiguous()
    to_x = to_weight = None
    if ctx.needs_input_grad[0]:
        to_x = l1_input_gradient(grad, x, weight, live, ctx.stride, ctx.padding, "sign")
    if ctx.needs_input_grad[1]:
        to_weight = l1_weight_gradient(grad, x, weight, live, ctx.stride, ctx.padding, "sign")
    return to_x, to_weight, None, None, None


l1_conv2d.register_autograd(_backward, setup_context=_setup)
for _device in ("cpu", "cuda"):
    l1_conv2d.register_autocast(_device, torch.float32)


@l1_conv2d.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    if in_dims[0] is not None and all(dim is None for dim in in_dims[1:]):
        x = arguments[0].movedim(in_dims[0], 0)
        return l1_conv2d(x.flatten(0, 1), *arguments[1:]).unflatten(0, x.shape[:2]), 0
    each = [
        [value] * info.batch_size if dim is None else value.unbind(dim)
        for value, dim in zip(arguments, in_dims, strict=True)
    ]
    return torch.stack([l1_conv2d(*call) for call in zip(*each, strict=True)]), 0


def l1_linear(x: Tensor, weight: Tensor, live: Tensor | None = None) -> Tensor:
    """-Σ_live |w - x| of rows: x [..., S], weight and live [D, S]; returns [..., D].

    Raises WiringError for what does not fit.
    """
    if x.dim() < 1 or weight.dim() != 2:
        raise WiringError(
            "an L1 layer takes x [..., S] and weight [D, S], got "
            f"{list(x.shape)} and {list(weight.shape)}"
        )
    rows = x.reshape(-1, x.shape[-1])[:, :, None, None]
    mask = None if live is None else live[:, :, None, None]
    y: Tensor = l1_conv2d(rows, weight[:, :, None, None], mask)
    return y.reshape(*x.shape[:-1], len(weight))
