"""One-bit weights, real inputs: y = alpha · Σ_live sign(w) x.

The weights rest as words, 1/32 of their size in float32 (Rastegari et al.: XNOR-Net, ECCV 2016,
Binary-Weight-Networks).
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import has_triton, native, threads
from wiring.kernels.bitpack.layout import layout
from wiring.kernels.xnor_conv2d.op import check_rows, weight_signs
from wiring.kernels.xnor_conv2d.shapes import check_weights, output_size, prepare

LEAST_PIXELS = 4
LEAST_READERS = 64
_native = native("xnor_conv2d")


def check_image(x: Tensor) -> None:
    """Raises WiringError unless x is float [N, C, H, W]."""
    if x.dim() != 4 or not x.is_floating_point():
        raise WiringError(
            f"inputs must be float [N, channels, H, W], got {x.dtype} {list(x.shape)}"
        )


def _sizes(
    x: Tensor, weight: Tensor, live: Tensor | None, alpha: Tensor, stride: int, padding: int
) -> tuple[int, int, int, int]:
    """The output's n, height, width and d, of inputs that fit one another."""
    check_image(x)
    n, channels, h, w = x.shape
    check_weights(weight, live, alpha, channels)
    d, kh, kw, _ = weight.shape
    return n, output_size(h, kh, stride, padding), output_size(w, kw, stride, padding), d


def _filters(weight: Tensor, live: Tensor | None, alpha: Tensor, x: Tensor) -> Tensor:
    """alpha · sign(w) on live edges, of x's type, [D, C, kh, kw]."""
    signs = weight_signs(weight, live, x.shape[1])
    return signs.mul(alpha.view(-1, 1, 1, 1)).to(x.dtype)


def convolve(
    x: Tensor, weight: Tensor, live: Tensor | None, alpha: Tensor, stride: int, padding: int
) -> Tensor:
    """The definition: unpack, then convolve."""
    filters = _filters(weight, live, alpha, x)
    if not filters.shape[0]:  # which conv2d refuses
        n, height, width, _ = _sizes(x, weight, live, alpha, stride, padding)
        return x.new_empty(n, height, width, 0).permute(0, 3, 1, 2)
    y = F.conv2d(x, filters, stride=stride, padding=padding)
    return y.contiguous(memory_format=torch.channels_last)


@custom_op("wiring::bwn_conv2d", mutates_args=())
def bwn_conv2d(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Convolve with alpha · sign(w), 0 on dead edges.

    x float [N, C, H, W]; weight and live words [D, kh, kw, ⌈C/64⌉], live None where every edge
    lives; alpha float32 [D]; returns x's type [N, D, H', W'], channels_last. Differentiable in x
    and alpha. Raises WiringError for what does not fit.
    """
    _sizes(x, weight, live, alpha, stride, padding)
    return convolve(x, weight, live, alpha, stride, padding)


@bwn_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    sizes = _sizes(x, weight, live, alpha, stride, padding)
    return x.new_empty(sizes).permute(0, 3, 1, 2)


def signed_sums(
    kernel: ModuleType | None,
    x: Tensor,
    filters: tuple[int, int, int],
    stride: int,
    padding: int,
) -> Callable[[int, int], Tensor] | None:
    """The compiled kernel for x and `filters` D, kh, kw, to be called with the addresses of the
    weights' panels and of alpha; None where unpacked weights and PyTorch are faster.

    A table of sums pays if many destinations or filter positions read it, and a register tile
    if a row has a few pixels.
    """
    n, channels, h, w = x.shape
    d, kh, kw = filters
    height, width = output_size(h, kh, stride, padding), output_size(w, kw, stride, padding)
    if kernel is None or x.dtype != torch.float32 or not kernel.has_signed_sums():
        return None
    if width < LEAST_PIXELS or kh * kw * d < LEAST_READERS:
        return None
    x, planes = layout(x)
    sizes = (n, h, w, channels, d, kh, kw, stride, padding)

    def run(panels: int, alpha: int) -> Tensor:
        y = torch.empty(n, height, width, d)
        kernel.signed_sums(x.data_ptr(), planes, panels, alpha, y.data_ptr(), sizes, threads())
        return y.permute(0, 3, 1, 2)

    return run


@bwn_conv2d.register_kernel("cpu")
def _(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    _sizes(x, weight, live, alpha, stride, padding)
    kernel = _native()
    filters = (weight.shape[0], weight.shape[1], weight.shape[2])
    run = None if live is not None else signed_sums(kernel, x, filters, stride, padding)
    if kernel is None or run is None:
        return convolve(x, weight, live, alpha, stride, padding)
    ready = prepare(kernel, weight, None, alpha, x.shape[1])
    return run(ready.sign.data_ptr(), ready.alpha.data_ptr())


@bwn_conv2d.register_kernel("cuda")
def _(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    _sizes(x, weight, live, alpha, stride, padding)
    if not has_triton():
        return convolve(x, weight, live, alpha, stride, padding)
    from wiring.kernels.xnor_conv2d import gpu

    return gpu.bwn_conv2d(x, weight, live, alpha, stride, padding)


@custom_op("wiring::bwn_input_gradient", mutates_args=())
def bwn_input_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    stride: int,
    padding: int,
) -> Tensor:
    """Gradient of bwn_conv2d's x: grad [N, D, H', W'] through the live edges; returns x's shape,
    contiguous."""
    filters = _filters(weight, live, alpha, x)
    if not filters.shape[0]:
        return torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    result = torch.ops.aten.convolution_backward(
        grad, x, filters, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
        [True, False, False],
    )[0]  # fmt: skip
    return cast(Tensor, result.contiguous())


@bwn_input_gradient.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    stride: int,
    padding: int,
) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, live, alpha = ctx.saved_tensors
    settings = (ctx.stride, ctx.padding)
    to_x = to_alpha = None
    if ctx.needs_input_grad[0]:
        to_x = bwn_input_gradient(grad.contiguous(), x, weight, live, alpha, *settings)
    if ctx.needs_input_grad[3]:
        sums = bwn_conv2d(x, weight, live, torch.ones_like(alpha), *settings)
        to_alpha = (grad * sums).sum(dim=(0, 2, 3)).to(alpha.dtype)
    return to_x, None, None, to_alpha, None, None


bwn_conv2d.register_autograd(_backward, setup_context=_setup)
bwn_conv2d.register_autocast("cpu", torch.float32)


def bwn_linear(x: Tensor, weight: Tensor, live: Tensor | None, alpha: Tensor) -> Tensor:
    """The same without positions: x [M, S], weight and live words [D, words], alpha [D]; returns
    [M, D]. Raises WiringError for what does not fit."""
    check_rows(x, weight, live)
    d = weight.shape[0]
    y = bwn_conv2d(
        x[:, :, None, None],
        weight.view(d, 1, 1, -1),
        None if live is None else live.view(d, 1, 1, -1),
        alpha,
    )
    result: Tensor = y.flatten(1)
    return result
