"""What a node with instance norm does with its sum, in one pass: norm, ReLU, 3x3 depthwise.

z = relu(instance norm(x)),  y_c = z_c * filter_c with a border of one 0. Only x is kept for the
backward pass, and z never leaves the core's cache.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import threads
from wiring.kernels.instance_norm.op import (
    channels_last,
    check,
    compiled,
    definition,
    definition_gradients,
    uninitialised,
)

SIDE, PADDING = 3, 1
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _check(x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, stride: int) -> None:
    check(x, weight, bias)
    if list(filters.shape) != [x.shape[1], 1, SIDE, SIDE]:
        raise WiringError(
            f"filters must be {[x.shape[1], 1, SIDE, SIDE]}, got {list(filters.shape)}"
        )
    if stride < 1:
        raise WiringError(f"stride must be at least 1, got {stride}")


def _output(x: Tensor, stride: int) -> Tensor:
    n, c, h, w = x.shape
    return uninitialised(x, n, c, (h - 1) // stride + 1, (w - 1) // stride + 1)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, eps: float, stride: int
) -> Tensor:
    z = definition(x, weight, bias, eps, relu=True)
    y = F.conv2d(z, filters, stride=stride, padding=PADDING, groups=x.shape[1])
    return _output(x, stride).copy_(y)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, eps: float, stride: int
) -> Gradients:
    z = definition(x, weight, bias, eps, relu=True)
    dz, to_filters, _ = torch.ops.aten.convolution_backward(
        grad, z, filters, None, [stride] * 2, [PADDING] * 2, [1, 1], False, [0, 0], x.shape[1],
        [True, True, False],
    )  # fmt: skip
    dx, dw, db = definition_gradients(dz, x, weight, bias, eps, relu=True)
    return dx, dw, db, torch.empty_like(filters).copy_(to_filters)


@custom_op("wiring::instance_norm_depthwise", mutates_args=())
def instance_norm_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, eps: float, stride: int
) -> Tensor:
    """Instance norm, ReLU and a 3x3 depthwise convolution without bias, padded by 1.

    x float [N, C, H, W]; weight, bias [C]; filters [C, 1, 3, 3]; returns
    [N, C, ⌈H/stride⌉, ⌈W/stride⌉] in channels_last. Raises WiringError for other shapes, images
    of fewer than 2 pixels and a stride below 1.
    """
    _check(x, weight, bias, filters, stride)
    return _forward(x, weight, bias, filters, eps, stride)


@custom_op("wiring::instance_norm_depthwise_gradients", mutates_args=())
def instance_norm_depthwise_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, eps: float, stride: int
) -> Gradients:
    """The gradients of x (channels_last), weight, bias and filters."""
    _check_gradients(grad, x, weight, bias, filters, stride)
    return _backward(grad, x, weight, bias, filters, eps, stride)


def _check_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, stride: int
) -> None:
    _check(x, weight, bias, filters, stride)
    n, c, h, w = x.shape
    expected = [n, c, (h - 1) // stride + 1, (w - 1) // stride + 1]
    if list(grad.shape) != expected:
        raise WiringError(f"the gradient must be {expected}, got {list(grad.shape)}")


@instance_norm_depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, eps: float, stride: int) -> Tensor:
    _check(x, weight, bias, filters, stride)
    return _output(x, stride)


@instance_norm_depthwise_gradients.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, eps: float, stride: int
) -> Gradients:
    _check_gradients(grad, x, weight, bias, filters, stride)
    parameters = (torch.empty_like(t) for t in (weight, bias, filters))
    return (uninitialised(x, *x.shape), *parameters)  # type: ignore[return-value]


@instance_norm_depthwise.register_kernel("cpu")
def _(x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, eps: float, stride: int) -> Tensor:
    _check(x, weight, bias, filters, stride)
    kernel = compiled(x, weight, bias, filters)
    if kernel is None:
        return _forward(x, weight, bias, filters, eps, stride)
    x, weight, bias, filters = (
        channels_last(x), weight.contiguous(), bias.contiguous(), filters.contiguous()
    )  # fmt: skip
    y = _output(x, stride)
    n, c, h, w = x.shape
    kernel.depthwise(
        x.data_ptr(), weight.data_ptr(), bias.data_ptr(), filters.data_ptr(), n, h, w, c, stride,
        eps, y.data_ptr(), threads(),
    )  # fmt: skip
    return y


@instance_norm_depthwise_gradients.register_kernel("cpu")
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, eps: float, stride: int
) -> Gradients:
    _check_gradients(grad, x, weight, bias, filters, stride)
    kernel = compiled(grad, x, weight, bias, filters)
    if kernel is None:
        return _backward(grad, x, weight, bias, filters, eps, stride)
    x, (grad, pitch) = channels_last(x), _pitched(grad)
    weight, bias, taps = weight.contiguous(), bias.contiguous(), filters.contiguous()
    dx, dw, db = uninitialised(x, *x.shape), torch.empty_like(weight), torch.empty_like(bias)
    dfilters = torch.empty_like(taps)
    n, c, h, w = x.shape
    kernel.depthwise_gradients(
        grad.data_ptr(), pitch, x.data_ptr(), weight.data_ptr(), bias.data_ptr(), taps.data_ptr(),
        n, h, w, c, stride, eps, dx.data_ptr(), dw.data_ptr(), db.data_ptr(), dfilters.data_ptr(),
        threads(),
    )  # fmt: skip
    return dx, dw, db, torch.empty_like(filters).copy_(dfilters)


def _pitched(grad: Tensor) -> tuple[Tensor, int]:
    """grad, copied unless it is a slice of a channels_last tensor's channels, and the floats
    from one pixel to the next: what comes back from concatenated groups is such a slice."""
    _, c, h, w = grad.shape
    pitch = grad.stride(3)
    if pitch >= c and grad.stride() == (h * w * pitch, 1, w * pitch, pitch):
        return grad, pitch
    return channels_last(grad), c


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, filters, ctx.eps, ctx.stride = inputs
    ctx.save_for_backward(x, weight, bias, filters)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = instance_norm_depthwise_gradients(grad, *ctx.saved_tensors, ctx.eps, ctx.stride)
    return (*gradients, None, None)


instance_norm_depthwise.register_autograd(_autograd, setup_context=_setup)
instance_norm_depthwise.register_autocast("cpu", torch.float32)
instance_norm_depthwise.register_autocast("cuda", torch.float32)


@instance_norm_depthwise.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    rows = [
        [a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)]
        for i in range(info.batch_size)
    ]
    return torch.stack([instance_norm_depthwise(*row) for row in rows]), 0
