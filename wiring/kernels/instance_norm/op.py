"""y = (x - mean)/√(variance + eps)·weight + bias of each image and channel, then ReLU if wanted.

PyTorch's own norms a channels_last batch by copying it to [1, N·C, H, W], and hands on that
format; here images stay [N, H, W, C], and the ReLU costs no pass over memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads

_native = native("instance_norm")
PIXELS = (2, 3)


def check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.dim() != 4:
        raise WiringError(f"instance norm takes [N, C, H, W], got {list(x.shape)}")
    if weight.shape != x.shape[1:2] or bias.shape != x.shape[1:2]:
        raise WiringError(
            f"instance norm of {x.shape[1]} channels takes a weight and a bias for each, "
            f"got {list(weight.shape)} and {list(bias.shape)}"
        )
    if x.shape[2] * x.shape[3] < 2:
        raise WiringError(
            f"instance norm needs at least 2 pixels an image, got {x.shape[2]}x{x.shape[3]}"
        )


def uninitialised(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    """[n, c, h, w] with memory [n, h, w, c]."""
    return like.new_empty(n, h, w, c).permute(0, 3, 1, 2)


def _moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x - mean, and 1/√(variance + eps) [N, C, 1, 1]."""
    variance, mean = torch.var_mean(x, dim=PIXELS, keepdim=True, correction=0)
    return x - mean, torch.rsqrt(variance + eps)


def _column(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def definition(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, relu: bool) -> Tensor:
    """In PyTorch's own operations; returns channels_last."""
    centred, scale = _moments(x, eps)
    y = centred * (scale * _column(weight)) + _column(bias)
    return uninitialised(x, *x.shape).copy_(y.relu() if relu else y)


def definition_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x (channels_last), weight and bias."""
    centred, scale = _moments(x, eps)
    if relu:
        y = centred * (scale * _column(weight)) + _column(bias)
        grad = torch.where(y > 0, grad, 0.0)
    normal = centred * scale
    sums = grad.sum(dim=PIXELS, keepdim=True)
    products = (grad * normal).sum(dim=PIXELS, keepdim=True)
    pixels = x.shape[2] * x.shape[3]
    dx = (grad - (sums + normal * products) / pixels) * (scale * _column(weight))
    return (
        uninitialised(x, *x.shape).copy_(dx),
        products.sum(dim=0).flatten(),
        sums.sum(dim=0).flatten(),
    )


@custom_op("wiring::instance_norm", mutates_args=())
def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
    """Normalise every channel of every image by its own moments (Ulyanov 2016), biased variance.

    x float [N, C, H, W]; weight, bias [C]; returns [N, C, H, W] in channels_last. Raises
    WiringError for other shapes and for images of fewer than 2 pixels.
    """
    check(x, weight, bias)
    return definition(x, weight, bias, eps, relu=relu)


@custom_op("wiring::instance_norm_gradients", mutates_args=())
def instance_norm_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (channels_last), weight and bias. Raises WiringError as the norm does."""
    _check_gradients(grad, x, weight, bias)
    return definition_gradients(grad, x, weight, bias, eps, relu=relu)


def _check_gradients(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    check(x, weight, bias)
    if grad.shape != x.shape:
        raise WiringError(f"the gradient must be {list(x.shape)}, got {list(grad.shape)}")


def compiled(*tensors: Tensor) -> Any:
    """The C++ module, if it is there and takes these."""
    kernel = _native()
    return kernel if all(t.dtype == torch.float32 for t in tensors) else None


@instance_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
    check(x, weight, bias)
    return uninitialised(x, *x.shape)


@instance_norm_gradients.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check_gradients(grad, x, weight, bias)
    return uninitialised(x, *x.shape), torch.empty_like(weight), torch.empty_like(bias)


@instance_norm.register_kernel("cpu")
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
    check(x, weight, bias)
    kernel = compiled(x, weight, bias)
    if kernel is None:
        return definition(x, weight, bias, eps, relu=relu)
    x, weight, bias = channels_last(x), weight.contiguous(), bias.contiguous()
    y = uninitialised(x, *x.shape)
    n, c, h, w = x.shape
    kernel.forward(
        x.data_ptr(), weight.data_ptr(), bias.data_ptr(), n, h * w, c, eps, relu,
        y.data_ptr(), threads(),
    )  # fmt: skip
    return y


@instance_norm_gradients.register_kernel("cpu")
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check_gradients(grad, x, weight, bias)
    kernel = compiled(grad, x, weight, bias)
    if kernel is None:
        return definition_gradients(grad, x, weight, bias, eps, relu=relu)
    x, grad, weight, bias = (
        channels_last(x),
        channels_last(grad),
        weight.contiguous(),
        bias.contiguous(),
    )
    dx, dw, db = uninitialised(x, *x.shape), torch.empty_like(weight), torch.empty_like(bias)
    n, c, h, w = x.shape
    kernel.gradients(
        grad.data_ptr(), x.data_ptr(), weight.data_ptr(), bias.data_ptr(), n, h * w, c, eps, relu,
        dx.data_ptr(), dw.data_ptr(), db.data_ptr(), threads(),
    )  # fmt: skip
    return dx, dw, db


def channels_last(x: Tensor) -> Tensor:
    """x with memory exactly [N, H, W, C]: sides of 1 make other strides pass for channels_last."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.eps, ctx.relu = inputs
    ctx.save_for_backward(x, weight, bias)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    return (*instance_norm_gradients(grad, x, weight, bias, ctx.eps, ctx.relu), None, None)


instance_norm.register_autograd(_autograd, setup_context=_setup)
instance_norm.register_autocast("cpu", torch.float32)
instance_norm.register_autocast("cuda", torch.float32)


@instance_norm.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    rows = [
        [a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)]
        for i in range(info.batch_size)
    ]
    return torch.stack([instance_norm(*row) for row in rows]), 0
