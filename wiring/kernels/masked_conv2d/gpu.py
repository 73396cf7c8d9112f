"""Sums over live edges in Triton, where that beats masking the weight for the vendor's convolution.

Masking costs a write and a read of the weight: a tenth of a training step's convolution, but most
of the time where there are few pixels M. So for M ≤ 16 one program takes a pixel and a few rows,
for M ≤ 256 a tile on tensor cores; both read the live plane first and a weight only where it
lives. Above, and for the weight gradient, the vendor's kernels run on `torch.where(live, w, 0)`.
The bounds are predicted from bytes and machine code, not measured.

Edges are walked in the weight's own order (channel, then tap), so that weights stream; the few
pixels are gathered around them. The input gradient is the same walk over (row, tap).
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wiring.kernels.masked_conv2d import definition
from wiring.kernels.triton_tools import FEW_PROGRAMS, block_for, blocks, launch

ROW_PIXELS = 16
TILE_PIXELS = 256
LEAST_SHARE = 256  # edges of a row below which sharing them out costs more than it gains
FUSED = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _source(
    pixel, tap, out_height, out_width, height, width, stride, padding,
    kernel_width: tl.constexpr, backward: tl.constexpr,
):  # fmt: skip
    """Row and column of the pixel that `tap` reads for an output pixel, and whether it exists.

    Backward, outputs are the image's pixels and sources those of the output's gradient.
    """
    i = pixel // out_width % out_height
    j = pixel % out_width
    if backward:
        i = i + padding - tap // kernel_width
        j = j + padding - tap % kernel_width
        at = (i >= 0) & (j >= 0) & (i % stride == 0) & (j % stride == 0)
        i = i // stride
        j = j // stride
    else:
        i = i * stride - padding + tap // kernel_width
        j = j * stride - padding + tap % kernel_width
        at = (i >= 0) & (j >= 0)
    return i, j, at & (i < height) & (j < width)


@triton.jit
def row_kernel(
    x_ptr, w_ptr, live_ptr, y_ptr, rows, depth, row_step, depth_step, out_height, out_width,
    height, width, stride, padding, x_image, x_depth, x_row, x_column, taps: tl.constexpr,
    kernel_width: tl.constexpr, backward: tl.constexpr, block_n: tl.constexpr,
    block_k: tl.constexpr,
):  # fmt: skip
    """y [M, rows]: one pixel and a few rows a program."""
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)[:, None]
    pixel = tl.program_id(1)
    image = (pixel // (out_height * out_width)).to(tl.int64)
    sums = tl.zeros((block_n, block_k), tl.float32)
    for k0 in range(0, depth * taps, block_k):
        k = k0 + tl.arange(0, block_k)[None, :]
        d = k // taps
        tap = k % taps
        i, j, at = _source(
            pixel, tap, out_height, out_width, height, width, stride, padding, kernel_width,
            backward,
        )  # fmt: skip
        at = at & (d < depth)
        here = x_ptr + image * x_image + d.to(tl.int64) * x_depth + i * x_row + j * x_column
        x = tl.load(here, mask=at, other=0).to(tl.float32)
        edge = row.to(tl.int64) * row_step + d.to(tl.int64) * depth_step + tap
        live = tl.load(live_ptr + edge, mask=at & (row < rows), other=0)
        w = tl.load(w_ptr + edge, mask=live != 0, other=0).to(tl.float32)
        sums += x * w
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)
    y = tl.sum(sums, axis=1).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + pixel.to(tl.int64) * rows + row, y, mask=row < rows)


@triton.jit
def tile_kernel(
    x_ptr, w_ptr, live_ptr, y_ptr, pixels, share, rows, depth, row_step, depth_step, out_height,
    out_width, height, width, stride, padding, x_image, x_depth, x_row, x_column,
    taps: tl.constexpr, kernel_width: tl.constexpr, backward: tl.constexpr,
    precision: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """y [part, M, rows], each part the sum over its share of a row's edges."""
    pixel = tl.program_id(0) * block_m + tl.arange(0, block_m)[:, None]
    row = tl.program_id(1) * block_n + tl.arange(0, block_n)[:, None]
    part = tl.program_id(2)
    image = (pixel // (out_height * out_width)).to(tl.int64)
    sums = tl.zeros((block_m, block_n), tl.float32)
    for k0 in range(part * share, part * share + share, block_k):
        k = k0 + tl.arange(0, block_k)[None, :]
        d = k // taps
        tap = k % taps
        i, j, at = _source(
            pixel, tap, out_height, out_width, height, width, stride, padding, kernel_width,
            backward,
        )  # fmt: skip
        here = x_ptr + image * x_image + d.to(tl.int64) * x_depth + i * x_row + j * x_column
        x = tl.load(here, mask=at & (pixel < pixels) & (d < depth), other=0)
        edge = row.to(tl.int64) * row_step + d.to(tl.int64) * depth_step + tap
        live = tl.load(live_ptr + edge, mask=(d < depth) & (row < rows), other=0)
        w = tl.load(w_ptr + edge, mask=live != 0, other=0)
        sums = tl.dot(x, tl.trans(w), sums, input_precision=precision)
    column = tl.program_id(1) * block_n + tl.arange(0, block_n)[None, :]
    y = y_ptr + (part.to(tl.int64) * pixels + pixel) * rows + column
    tl.store(y, sums, mask=(pixel < pixels) & (column < rows))


def masked_conv2d(
    x: Tensor, weight: Tensor, live: Tensor, learn: Tensor, stride: int = 1, padding: int = 0
) -> Tensor:
    """Sum over live edges; x [N, S, H, W]; weight, live [D, S, kh, kw]; channels_last."""
    height, width = definition.check_window(x.shape[2], x.shape[3], weight, stride, padding)
    if not _fused(len(x) * height * width, x, weight):
        return definition.dense(x, weight, live, stride, padding)
    shape = (len(x), height, width, len(weight))
    return _sums(x, weight, live, shape, stride, padding, backward=False)


def masked_conv2d_input_gradient(
    grad: Tensor, weight: Tensor, live: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    """dx_u = Σ_live w_uv dy_v: [N, S, height, width], channels_last."""
    if not _fused(len(grad) * height * width, grad, weight):
        return definition.dense_input_gradient(grad, weight, live, height, width, stride, padding)
    shape = (len(grad), height, width, weight.shape[1])
    return _sums(grad, weight, live, shape, stride, padding, backward=True)


def masked_conv2d_weight_gradient(
    grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int
) -> Tensor:
    """⟨x_u, dy_v⟩ on `learn`, 0 elsewhere: a matrix product, then the mask."""
    return definition.dense_weight_gradient(grad, x, learn, stride, padding)


def _fused(pixels: int, x: Tensor, weight: Tensor) -> bool:
    filled = bool(x.numel() and weight.numel())
    return filled and pixels <= TILE_PIXELS and x.dtype in FUSED and weight.dtype == x.dtype


def _sums(
    x: Tensor, weight: Tensor, live: Tensor, shape: tuple[int, int, int, int], stride: int,
    padding: int, *, backward: bool,
) -> Tensor:  # fmt: skip
    """An output of memory [N, H, W, rows] from images x and the weight's rows, or its columns."""
    weight, live = weight.contiguous(), live.contiguous().view(torch.uint8)
    _, sources, kernel_height, kernel_width = weight.shape
    taps = kernel_height * kernel_width
    depth, rows = x.shape[1], shape[3]
    row_step, depth_step = taps * sources, taps
    if backward:
        row_step, depth_step = depth_step, row_step
    pixels = shape[0] * shape[1] * shape[2]
    edges = (rows, depth, row_step, depth_step)
    spots = (shape[1], shape[2], x.shape[2], x.shape[3], stride, padding, *x.stride())
    if pixels <= ROW_PIXELS:
        result = x.new_empty(shape)
        # Lanes go along edges that lie side by side: along a row, or backward along a column.
        block_n, block_k = (64, 16) if backward else (4, 256)
        launch(
            row_kernel, (blocks(rows, block_n), pixels),
            x, weight, live, result, *edges, *spots, taps=taps, kernel_width=kernel_width,
            backward=backward, block_n=block_n, block_k=block_k, num_warps=4,
        )  # fmt: skip
        return result.permute(0, 3, 1, 2)
    block_m, block_n, block_k = block_for(pixels, 16, 64), block_for(rows, 16, 64), 32
    tiles = blocks(pixels, block_m) * blocks(rows, block_n)
    parts = min(blocks(FEW_PROGRAMS, tiles), blocks(depth * taps, LEAST_SHARE))
    share = block_k * blocks(blocks(depth * taps, parts), block_k)
    sums = x.new_empty((parts, *shape), dtype=torch.float32)
    launch(
        tile_kernel, (blocks(pixels, block_m), blocks(rows, block_n), parts),
        x, weight, live, sums, pixels, share, *edges, *spots, taps=taps,
        kernel_width=kernel_width, backward=backward,
        precision="tf32" if torch.backends.cudnn.allow_tf32 else "ieee",
        block_m=block_m, block_n=block_n, block_k=block_k,
        num_warps=8 if block_m * block_n > 2048 else 4, num_stages=3,
    )  # fmt: skip
    # Parts are added in their order: the same result on every run.
    return sums.sum(dim=0).to(x.dtype).permute(0, 3, 1, 2)
