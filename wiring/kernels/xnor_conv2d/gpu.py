"""Packed convolutions in Triton; which kernel runs goes by the number M of output pixels.

- M ≤ 16: weights stream by as bits, one pixel a program; memory decides.
- M < 256: XNOR and POPC on tiles of pixels and rows, for xnor_conv2d and bit planes.
- Larger: POPC, a quarter of the rate of logic, loses to tensor cores on signs as int8. Each operand
  is unpacked once, before the product; real inputs go to the vendor's convolution.

The bounds are predicted from machine code, not measured. Integer sums are exact on every path.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from wiring.kernels.bitpack.gpu import unpack_bytes
from wiring.kernels.triton_tools import (
    FEW_PROGRAMS,
    REGISTERS,
    Window,
    block_for,
    blocks,
    launch,
    tile,
)
from wiring.kernels.xnor_conv2d.gpu_kernels import (
    planes_kernel,
    real_kernel,
    row_kernel,
    signs_kernel,
    tile_kernel,
)

STREAM_PIXELS = 16
TENSOR_PIXELS = 256


def xnor_conv2d(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    scale: Tensor | None,
    channels: int,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """alpha · Σ_live signs [· scale] of words x [N, H, W, ·] and weight, live [D, kh, kw, ·]."""
    window = _window(x, weight, channels, stride, padding)
    alpha = alpha.contiguous()
    scale = None if scale is None else scale.contiguous()
    if window.pixels <= STREAM_PIXELS:
        return _by_rows(x, weight, live, alpha, scale, window)
    if window.pixels < TENSOR_PIXELS:
        return _by_tiles(x, weight, live, alpha, scale, window)
    return _by_bytes(x, weight, live, alpha, scale, window)


def bitplane_conv2d(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Σ 2^(i+j) popcount(x_i & w_j): planes [bits, N, H, W, ·] and [bits, D, kh, kw, ·]; int32."""
    halves = 2 * x.shape[4]
    window = _window(x[0], weight[0], 32 * halves, stride, padding)
    result = window.output(x, torch.int32)
    images = _halves(x).permute(0, 1, 4, 2, 3).contiguous()
    w = _halves(weight).permute(0, 2, 3, 4, 1).contiguous()
    block_m, block_n, warps = tile(window.pixels, window.rows)
    launch(
        planes_kernel,
        (blocks(window.pixels, block_m), blocks(window.rows, block_n)),
        images, w, result, window.pixels, window.rows, halves, *_sizes(window),
        images[0].numel(), x.shape[0], weight.shape[0], taps=window.taps,
        kernel_width=window.kernel_width,
        block_m=block_m, block_n=block_n, block_k=2, num_warps=warps, maxnreg=REGISTERS,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def bwn_conv2d(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Convolve real x with alpha · sign(w), 0 on dead edges; weight, live words [D, kh, kw, ·]."""
    images, channels, height, width = x.shape
    kernel = (weight.shape[1], weight.shape[2])
    window = Window(images, channels, height, width, weight.shape[0], *kernel, stride, padding)
    if window.pixels > STREAM_PIXELS:
        from wiring.kernels.xnor_conv2d.bwn import convolve

        return convolve(x, weight, live, alpha, stride, padding)
    result = window.output(x, x.dtype)
    w = _halves(weight)
    alive = w if live is None else _halves(live)
    launch(
        real_kernel,
        (blocks(window.rows, 4), window.pixels),
        x, w, alive, alpha.contiguous(), result, window.rows, channels, w.shape[-1],
        *_sizes(window), *x.stride(), taps=window.taps, kernel_width=window.kernel_width,
        masked=live is not None, total=tl.float64 if x.dtype == torch.float64 else tl.float32,
        block_n=4, block_k=256, num_warps=4,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def _by_rows(
    x: Tensor, weight: Tensor, live: Tensor | None, alpha: Tensor, scale: Tensor | None,
    window: Window,
) -> Tensor:  # fmt: skip
    result = window.output(x, torch.float32)
    w = _halves(weight)
    alive = w if live is None else _halves(live)
    launch(
        row_kernel,
        (blocks(window.rows, 4), window.pixels),
        _halves(x), w, alive, alpha, alpha if scale is None else scale, result, window.rows,
        window.channels, w.shape[-1], *_sizes(window), taps=window.taps,
        kernel_width=window.kernel_width, masked=live is not None, scaled=scale is not None,
        block_n=4, block_k=128, num_warps=4,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def _by_tiles(
    x: Tensor, weight: Tensor, live: Tensor | None, alpha: Tensor, scale: Tensor | None,
    window: Window,
) -> Tensor:  # fmt: skip
    result = window.output(x, torch.float32)
    used = blocks(window.channels, 32)
    images = _halves(x)[..., :used].permute(0, 3, 1, 2).contiguous()
    w = alive = count = _halves(weight)[..., :used].permute(1, 2, 3, 0).contiguous()
    if live is not None:
        alive = _halves(live)[..., :used].permute(1, 2, 3, 0).contiguous()
        count = _live_bits(live, window).contiguous()
    block_m, block_n, warps = tile(window.pixels, window.rows)
    launch(
        tile_kernel,
        (blocks(window.pixels, block_m), blocks(window.rows, block_n)),
        images, w, alive, count, alpha, alpha if scale is None else scale, result,
        window.pixels, window.rows, window.channels, used, *_sizes(window), taps=window.taps,
        kernel_width=window.kernel_width, masked=live is not None, scaled=scale is not None,
        block_m=block_m, block_n=block_n, block_k=2 if used % 2 == 0 else 1,
        num_warps=warps, maxnreg=REGISTERS,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def _by_bytes(
    x: Tensor, weight: Tensor, live: Tensor | None, alpha: Tensor, scale: Tensor | None,
    window: Window,
) -> Tensor:  # fmt: skip
    """Needs C bytes for every input pixel and every filter tap, C a multiple of 32."""
    result = window.output(x, torch.float32)
    padded = 32 * blocks(window.channels, 32)
    block_k = next(k for k in (128, 64, 32) if padded % k == 0)
    images = unpack_bytes(x, None, window.channels, padded)
    w = unpack_bytes(weight, live, window.channels, padded)
    block_n = block_for(window.rows, 32, 128)
    busy = blocks(window.pixels, 128) * blocks(window.rows, block_n) >= FEW_PROGRAMS
    block_m = 128 if busy else 64
    launch(
        signs_kernel,
        (blocks(window.pixels, block_m), blocks(window.rows, block_n)),
        images, w, alpha, alpha if scale is None else scale, result, window.pixels, window.rows,
        padded, *_sizes(window), taps=window.taps, kernel_width=window.kernel_width,
        scaled=scale is not None, block_m=block_m, block_n=block_n, block_k=block_k,
        num_warps=8 if block_m * block_n > 64 * 128 else 4, num_stages=3,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def _window(x: Tensor, weight: Tensor, channels: int, stride: int, padding: int) -> Window:
    images, height, width, _ = x.shape
    rows, kernel_height, kernel_width, _ = weight.shape
    return Window(
        images, channels, height, width, rows, kernel_height, kernel_width, stride, padding
    )


def _sizes(window: Window) -> tuple[int, ...]:
    return (
        window.height, window.width, window.out_height, window.out_width, window.stride,
        window.padding,
    )  # fmt: skip


def _halves(words: Tensor) -> Tensor:
    """int64 [..., n] → int32 [..., 2·n], the lower half first."""
    return words.contiguous().view(torch.int32)


def _live_bits(live: Tensor, window: Window) -> Tensor:
    """int32 [kh, kw, D]: live edges of each row at each tap."""
    alive = unpack_bytes(live, None, window.channels, window.channels)
    return (alive > 0).sum(dim=-1, dtype=torch.int32).permute(1, 2, 0)
