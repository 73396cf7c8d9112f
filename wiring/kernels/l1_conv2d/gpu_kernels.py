"""The kernels of L1 sums: two instructions a term, operands read in place (see `gpu.py`)."""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from wiring.kernels.triton_tools import absdiff4


@triton.jit
def sums_kernel(
    x_ptr, w_ptr, m_ptr, y_ptr, pixels, rows, channels, height, width, out_height, out_width,
    stride, padding, taps: tl.constexpr, kernel_width: tl.constexpr, masked: tl.constexpr,
    total: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """y[m, d] = -Σ |x·m - w|; x [N, C, H, W]; w, m [taps, C, D]; y [N·H'·W', D]."""
    pixel = tl.program_id(0) * block_m + tl.arange(0, block_m)[:, None]
    row = tl.program_id(1) * block_n + tl.arange(0, block_n)[None, :]
    inside = pixel < pixels
    known = row < rows
    area = out_height * out_width
    image = pixel // area
    top = pixel % area // out_width * stride - padding
    left = pixel % out_width * stride - padding
    # int64: a batch of activations can pass 2**31 elements.
    start = x_ptr + image.to(tl.int64) * channels * height * width
    out = y_ptr + pixel.to(tl.int64) * rows + row
    # Reads nothing: it gives the sums the layout of a store, one row of pixels to a warp.
    sums = tl.load(out, mask=pixel + row < 0, other=0).to(total)
    for tap in range(taps):
        i = top + tap // kernel_width
        j = left + tap % kernel_width
        at = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        here = start + i * width + j
        for c0 in range(0, channels, block_k):
            for k in tl.static_range(block_k):
                c = c0 + k
                edge = (tap * channels + c) * rows + row
                x = tl.load(here + c * height * width, mask=at, other=0).to(total)
                w = tl.load(w_ptr + edge, mask=known, other=0).to(total)
                if masked:
                    x = x * tl.load(m_ptr + edge, mask=known, other=0).to(total)
                sums -= tl.abs(x - w)
    tl.store(out, sums.to(y_ptr.dtype.element_ty), mask=inside & known)


@triton.jit
def pull_kernel(
    x_ptr, w_ptr, m_ptr, g_ptr, y_ptr, pixels, rows, channels, height, width, out_height,
    out_width, stride, padding, taps: tl.constexpr, kernel_width: tl.constexpr,
    masked: tl.constexpr, clipped: tl.constexpr, total: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """y[p, c] = Σ g·clamp(w - x, -1, 1), or Σ g·sign(w - x).

    x, y [N·H·W, C]; g [N, D, H', W']; w, m [taps, D, C]. Clipped is 2·Σ g·sat(w' - x/2) - Σ g
    with w' = w/2 + 1/2 (1/2 where dead): FADD.SAT and FFMA instead of four instructions.
    """
    pixel = tl.program_id(0) * block_m + tl.arange(0, block_m)[:, None]
    channel = tl.program_id(1) * block_n + tl.arange(0, block_n)[None, :]
    inside = pixel < pixels
    known = channel < channels
    area = height * width
    image = pixel // area
    bottom = pixel % area // width + padding
    right = pixel % width + padding
    field = out_height * out_width
    start = g_ptr + image.to(tl.int64) * rows * field
    spot = pixel.to(tl.int64) * channels + channel
    x = tl.load(x_ptr + spot, mask=inside & known, other=0).to(total)
    if clipped:
        x = 0.5 * x
    sums = tl.zeros((block_m, block_n), total)
    weight_of_all = tl.zeros((block_m, 1), total)
    for tap in range(taps):
        i = bottom - tap // kernel_width
        j = right - tap % kernel_width
        at = inside & (i >= 0) & (j >= 0) & (i % stride == 0) & (j % stride == 0)
        i = i // stride
        j = j // stride
        at = at & (i < out_height) & (j < out_width)
        here = start + i * out_width + j
        for d0 in range(0, rows, block_k):
            for k in tl.static_range(block_k):
                d = d0 + k
                edge = (tap * rows + d) * channels + channel
                g = tl.load(here + d * field, mask=at, other=0).to(total)
                w = tl.load(w_ptr + edge, mask=known, other=0).to(total)
                if masked:
                    m = tl.load(m_ptr + edge, mask=known, other=0).to(total)
                    pull = w - x * m
                else:
                    pull = w - x
                if clipped:
                    sums += tl.clamp(pull, 0.0, 1.0) * g
                    weight_of_all += g
                else:
                    sums += tl.where(pull == 0, 0.0, tl.where(pull > 0, g, -g))
    if clipped:
        sums = 2 * sums - weight_of_all
    tl.store(y_ptr + spot, sums.to(y_ptr.dtype.element_ty), mask=inside & known)


@triton.jit
def side_kernel(
    x_ptr, w_ptr, g_ptr, y_ptr, pixels, share, rows, channels, height, width, out_height,
    out_width, stride, padding, taps, kernel_width, channel_blocks, total: tl.constexpr,
    block_n: tl.constexpr, block_c: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """y[part, d, tap, c] = Σ over the part's pixels of g·sign(x - w).

    x [N, H, W, C]; g [N·H'·W', D]; w [D, taps, C]. Padding is a pixel of value 0 that counts.
    """
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)[:, None]
    tap = tl.program_id(1) // channel_blocks
    channel = tl.program_id(1) % channel_blocks * block_c + tl.arange(0, block_c)[None, :]
    part = tl.program_id(2)
    known = row < rows
    here = channel < channels
    edge = (row * taps + tap) * channels + channel
    w = tl.load(w_ptr + edge, mask=known & here, other=0).to(total)
    sums = tl.zeros((block_n, block_c), total)
    for p0 in range(part * share, part * share + share, block_k):
        for k in tl.static_range(block_k):
            pixel = p0 + k
            image = pixel // (out_height * out_width)
            i = pixel // out_width % out_height * stride - padding + tap // kernel_width
            j = pixel % out_width * stride - padding + tap % kernel_width
            at = (i >= 0) & (i < height) & (j >= 0) & (j < width) & (pixel < pixels)
            source = ((image.to(tl.int64) * height + i) * width + j) * channels
            x = tl.load(x_ptr + source + channel, mask=here & at, other=0).to(total)
            g = g_ptr + pixel.to(tl.int64) * rows + row
            g = tl.load(g, mask=known & (pixel < pixels), other=0).to(total)
            sums += tl.where(x == w, 0.0, tl.where(x > w, g, -g))
    out = y_ptr + part.to(tl.int64) * rows * taps * channels + edge
    tl.store(out, sums, mask=known & here)


@triton.jit
def bytes_kernel(
    x_ptr, w_ptr, m_ptr, y_ptr, outside, pixels, rows, words, height, width, out_height,
    out_width, stride, padding, taps: tl.constexpr, kernel_width: tl.constexpr,
    masked: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """y[m, d] = -Σ |w - x| over bytes, four channels a word; `outside` is the word of padding.

    x int32 [N, words, H, W]; w, m int32 [taps, words, D]; y int32 [N·H'·W', D].
    """
    pixel = tl.program_id(0) * block_m + tl.arange(0, block_m)[:, None]
    row = tl.program_id(1) * block_n + tl.arange(0, block_n)[None, :]
    inside = pixel < pixels
    known = row < rows
    area = out_height * out_width
    image = pixel // area
    top = pixel % area // out_width * stride - padding
    left = pixel % out_width * stride - padding
    start = x_ptr + image.to(tl.int64) * words * height * width
    out = y_ptr + pixel.to(tl.int64) * rows + row
    sums = tl.load(out, mask=pixel + row < 0, other=0)  # as in sums_kernel
    for tap in range(taps):
        i = top + tap // kernel_width
        j = left + tap % kernel_width
        at = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        here = start + i * width + j
        for c0 in range(0, words, block_k):
            for k in tl.static_range(block_k):
                c = c0 + k
                edge = (tap * words + c) * rows + row
                x = tl.load(here + c * height * width, mask=at, other=outside)
                w = tl.load(w_ptr + edge, mask=known, other=0)
                if masked:
                    x = x & tl.load(m_ptr + edge, mask=known, other=0)
                sums = absdiff4(x, w, sums)
    tl.store(out, -sums, mask=inside & known)
