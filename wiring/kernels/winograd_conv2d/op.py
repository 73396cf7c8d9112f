"""Y = Aᵀ [Σ_u (G g_u Gᵀ) ⊙ (Bᵀ d_u B)] A on tiles: 3x3 kernels, stride 1, any zero padding.

F(2x2, 3x3) takes 16 multiplications where the definition takes 36, F(4x4, 3x3) 36 where it takes
144; the sum over channels precedes the inverse transform (Lavin & Gray: Fast Algorithms for
Convolutional Neural Networks, CVPR 2016). Gradients are exact:

    dX is the same algorithm on dY with the filters turned by 180° and transposed,
    dW = Gᵀ [Σ_tiles (Bᵀ d B) ⊙ (A dy Aᵀ)] G, the transposed algorithm.

In float32 results differ from the definition's by rounding alone: by about 1e-6 of the largest
result for tiles of 2, 2e-5 for tiles of 4, whose matrices hold numbers from 1/24 to 8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.masked_conv2d.definition import check_gradient, check_same, last
from wiring.kernels.winograd_conv2d.tiles import (
    check,
    filter_gradient,
    filter_tiles,
    gradient_tiles,
    image_tiles,
    result_images,
)


def convolve(x: Tensor, filters: Tensor, size: tuple[int, int], padding: int, tile: int) -> Tensor:
    """x [N, S, H, W] under transformed filters [a², S, D]: [N, D, *size], channels_last."""
    n, d = x.shape[0], filters.shape[2]
    if not (x.numel() and d):
        return last(n, d, *size, x).zero_()
    tiles = torch.bmm(image_tiles(x, size, padding, tile), filters)
    return result_images(tiles, n, size, tile)


@custom_op("wiring::winograd_conv2d", mutates_args=())
def winograd_conv2d(x: Tensor, weight: Tensor, padding: int = 0, tile: int = 4) -> Tensor:
    """The ordinary convolution of stride 1 by tiles of `tile` x `tile` results.

    x float32 or float64 [N, S, H, W]; weight [D, S, 3, 3] of its type. Returns [N, D, H', W'],
    channels_last. Raises WiringError for other kernels, and where types, shapes or sizes do not
    fit.
    """
    size = check(x, weight, padding, tile)
    return convolve(x, filter_tiles(weight, tile), size, padding, tile)


@custom_op("wiring::winograd_conv2d_input_gradient", mutates_args=())
def winograd_conv2d_input_gradient(
    grad: Tensor, weight: Tensor, height: int, width: int, padding: int, tile: int
) -> Tensor:
    """dx [N, S, height, width], channels_last, of grad [N, D, H', W']. Raises WiringError."""
    check_same(grad, weight)
    check_gradient(grad, weight, (height + 2 * padding - 2, width + 2 * padding - 2))
    turned = filter_tiles(weight.flip(2, 3).transpose(0, 1), tile)
    return convolve(grad, turned, (height, width), 2 - padding, tile)


@custom_op("wiring::winograd_conv2d_weight_gradient", mutates_args=())
def winograd_conv2d_weight_gradient(grad: Tensor, x: Tensor, padding: int, tile: int) -> Tensor:
    """dw [D, S, 3, 3] of grad [N, D, H', W'] and x [N, S, H, W]. Raises WiringError."""
    check_same(grad, x)
    size = (x.shape[2] + 2 * padding - 2, x.shape[3] + 2 * padding - 2)
    if len(grad) != len(x) or tuple(grad.shape[2:]) != size:
        raise WiringError(
            f"the gradient must be [{len(x)}, D, {size[0]}, {size[1]}], got {list(grad.shape)}"
        )
    if not (grad.numel() and x.numel()):
        return x.new_zeros(grad.shape[1], x.shape[1], 3, 3)
    seen = image_tiles(x, size, padding, tile)
    return filter_gradient(torch.bmm(seen.transpose(1, 2), gradient_tiles(grad, tile)), tile)


@winograd_conv2d.register_fake
def _(x: Tensor, weight: Tensor, padding: int = 0, tile: int = 4) -> Tensor:
    h, w = check(x, weight, padding, tile)
    return last(x.shape[0], weight.shape[0], h, w, x)


@winograd_conv2d_input_gradient.register_fake
def _(grad: Tensor, weight: Tensor, height: int, width: int, padding: int, tile: int) -> Tensor:
    return last(grad.shape[0], weight.shape[1], height, width, grad)


@winograd_conv2d_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, padding: int, tile: int) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1], 3, 3)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.padding, ctx.tile = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx = dw = None
    if ctx.needs_input_grad[0]:
        dx = winograd_conv2d_input_gradient(
            grad, weight, x.shape[2], x.shape[3], ctx.padding, ctx.tile
        )
    if ctx.needs_input_grad[1]:
        dw = winograd_conv2d_weight_gradient(grad, x, ctx.padding, ctx.tile)
    return dx, dw, None, None


winograd_conv2d.register_autograd(_backward, setup_context=_setup)
winograd_conv2d.register_autocast("cpu", torch.float32)
winograd_conv2d.register_autocast("cuda", torch.float32)
