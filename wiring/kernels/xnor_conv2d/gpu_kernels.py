"""The kernels of packed convolutions: POPC on tiles or on rows, and signs as int8 (see `gpu.py`).

Words are read as int32 halves. Outputs are [N·H'·W', D].
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from wiring.kernels.triton_tools import popc


@triton.jit
def tile_kernel(
    x_ptr, w_ptr, live_ptr, count_ptr, alpha_ptr, scale_ptr, y_ptr, pixels, rows, channels,
    halves, height, width, out_height, out_width, stride, padding, taps: tl.constexpr,
    kernel_width: tl.constexpr, masked: tl.constexpr, scaled: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """XNOR and count. x [N, halves, H, W]; w, live [taps, halves, D]; count [taps, D]."""
    pixel = tl.program_id(0) * block_m + tl.arange(0, block_m)[:, None]
    row = tl.program_id(1) * block_n + tl.arange(0, block_n)[None, :]
    inside = pixel < pixels
    known = row < rows
    area = out_height * out_width
    top = pixel % area // out_width * stride - padding
    left = pixel % out_width * stride - padding
    # int64: a batch of activations can pass 2**31 elements.
    start = x_ptr + (pixel // area).to(tl.int64) * halves * height * width
    out = y_ptr + pixel.to(tl.int64) * rows + row
    # Reads nothing: it gives the counts the layout of a store, one row of pixels to a warp.
    dots = tl.load(out, mask=pixel + row < 0, other=0).to(tl.int32)
    for tap in range(taps):
        i = top + tap // kernel_width
        j = left + tap % kernel_width
        at = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        here = start + i * width + j
        bits = tl.load(count_ptr + tap * rows + row, mask=known, other=0) if masked else channels
        dots += tl.where(at, bits, 0)
        valid = tl.where(at, -1, 0)
        for c0 in range(0, halves, block_k):
            for k in tl.static_range(block_k):
                c = c0 + k
                edge = (tap * halves + c) * rows + row
                x = tl.load(here + c * height * width, mask=at, other=0)
                w = tl.load(w_ptr + edge, mask=known, other=0)
                differ = (x ^ w) & valid
                if masked:
                    differ = differ & tl.load(live_ptr + edge, mask=known, other=0)
                dots -= 2 * popc(differ)
    y = dots.to(tl.float32) * tl.load(alpha_ptr + row, mask=known, other=0)
    if scaled:
        y = y * tl.load(scale_ptr + pixel, mask=inside, other=0)
    tl.store(out, y, mask=inside & known)


@triton.jit
def row_kernel(
    x_ptr, w_ptr, live_ptr, alpha_ptr, scale_ptr, y_ptr, rows, channels, halves, height, width,
    out_height, out_width, stride, padding, taps: tl.constexpr, kernel_width: tl.constexpr,
    masked: tl.constexpr, scaled: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """The same for one pixel a program: weights stream by as they are stored.

    x [N, H, W, halves]; w, live [D, taps·halves].
    """
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)[:, None]
    pixel = tl.program_id(1)
    known = row < rows
    image = pixel // (out_height * out_width)
    top = pixel // out_width % out_height * stride - padding
    left = pixel % out_width * stride - padding
    start = image.to(tl.int64) * height * width
    words = taps * halves
    dots = tl.zeros((block_n, block_k), tl.int32)
    for k0 in range(0, words, block_k):
        k = k0 + tl.arange(0, block_k)[None, :]
        tap = k // halves
        i = top + tap // kernel_width
        j = left + tap % kernel_width
        at = (k < words) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        x = tl.load(x_ptr + (start + i * width + j) * halves + k % halves, mask=at, other=0)
        w = tl.load(w_ptr + row * words + k, mask=known & at, other=0)
        differ = x ^ w
        if masked:
            live = tl.load(live_ptr + row * words + k, mask=known & at, other=0)
            bits = popc(live)
            differ = differ & live
        else:
            bits = tl.minimum(tl.maximum(channels - k % halves * 32, 0), 32)
        dots += tl.where(at, bits - 2 * popc(differ), 0)
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)
    y = tl.sum(dots, axis=1).to(tl.float32) * tl.load(alpha_ptr + row, mask=row < rows, other=0)
    if scaled:
        y = y * tl.load(scale_ptr + pixel)
    tl.store(y_ptr + pixel.to(tl.int64) * rows + row, y, mask=row < rows)


@triton.jit
def signs_kernel(
    x_ptr, w_ptr, alpha_ptr, scale_ptr, y_ptr, pixels, rows, channels, height, width, out_height,
    out_width, stride, padding, taps: tl.constexpr, kernel_width: tl.constexpr,
    scaled: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """Signs as int8 on tensor cores: x [N, H, W, C]; w [D, taps, C]; C a multiple of block_k.

    A pixel outside, a dead edge and a channel behind the last are 0, so that borders and masks
    need no correction.
    """
    pixel = tl.program_id(0) * block_m + tl.arange(0, block_m)
    row = tl.program_id(1) * block_n + tl.arange(0, block_n)
    lane = tl.arange(0, block_k)
    inside = pixel < pixels
    known = row < rows
    area = out_height * out_width
    top = pixel % area // out_width * stride - padding
    left = pixel % out_width * stride - padding
    start = x_ptr + (pixel // area).to(tl.int64) * height * width * channels
    w_start = w_ptr + row[:, None] * (taps * channels) + lane[None, :]
    steps = channels // block_k
    dots = tl.zeros((block_m, block_n), tl.int32)
    for step in range(taps * steps):
        tap = step // steps
        c = step % steps * block_k
        i = top + tap // kernel_width
        j = left + tap % kernel_width
        at = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        here = start + (i * width + j) * channels + c
        x = tl.load(here[:, None] + lane[None, :], mask=at[:, None], other=0)
        w = tl.load(w_start + step * block_k, mask=known[:, None], other=0)
        dots = tl.dot(x, tl.trans(w), dots, out_dtype=tl.int32)
    y = dots.to(tl.float32) * tl.load(alpha_ptr + row, mask=known, other=0)[None, :]
    if scaled:
        y = y * tl.load(scale_ptr + pixel, mask=inside, other=0)[:, None]
    out = y_ptr + pixel.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(out, y, mask=inside[:, None] & known[None, :])


@triton.jit
def planes_kernel(
    x_ptr, w_ptr, y_ptr, pixels, rows, halves, height, width, out_height, out_width, stride,
    padding, plane_step, x_bits, w_bits, taps: tl.constexpr, kernel_width: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """Σ 2^(i+j) popcount(x_i & w_j); x [x_bits, N, halves, H, W]; w [w_bits, taps, halves, D]."""
    pixel = tl.program_id(0) * block_m + tl.arange(0, block_m)[:, None]
    row = tl.program_id(1) * block_n + tl.arange(0, block_n)[None, :]
    inside = pixel < pixels
    known = row < rows
    area = out_height * out_width
    top = pixel % area // out_width * stride - padding
    left = pixel % out_width * stride - padding
    start = x_ptr + (pixel // area).to(tl.int64) * halves * height * width
    out = y_ptr + pixel.to(tl.int64) * rows + row
    sums = tl.load(out, mask=pixel + row < 0, other=0)  # as in tile_kernel
    for pair in range(x_bits * w_bits):
        x_bit = pair // w_bits
        w_bit = pair % w_bits
        plane = start + x_bit.to(tl.int64) * plane_step
        w_plane = w_ptr + w_bit * taps * halves * rows
        factor = 1 << (x_bit + w_bit)
        for tap in range(taps):
            i = top + tap // kernel_width
            j = left + tap % kernel_width
            at = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
            here = plane + i * width + j
            for c0 in range(0, halves, block_k):
                for k in tl.static_range(block_k):
                    c = c0 + k
                    x = tl.load(here + c * height * width, mask=at, other=0)
                    w = tl.load(w_plane + (tap * halves + c) * rows + row, mask=known, other=0)
                    sums += factor * popc(x & w)
    tl.store(out, sums, mask=inside & known)


@triton.jit
def real_kernel(
    x_ptr, w_ptr, live_ptr, alpha_ptr, y_ptr, rows, channels, halves, height, width, out_height,
    out_width, stride, padding, image_step, channel_step, row_step, column_step,
    taps: tl.constexpr, kernel_width: tl.constexpr, masked: tl.constexpr, total: tl.constexpr,
    block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """Real x under one-bit weights [D, taps·halves], one pixel a program: α·Σ ±x."""
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)[:, None]
    pixel = tl.program_id(1)
    known = row < rows
    image = pixel // (out_height * out_width)
    top = pixel // out_width % out_height * stride - padding
    left = pixel % out_width * stride - padding
    start = x_ptr + image.to(tl.int64) * image_step
    words = taps * halves
    sums = tl.zeros((block_n, block_k), total)
    for k0 in range(0, words * 32, block_k):
        k = k0 + tl.arange(0, block_k)[None, :]
        word = k // 32
        tap = word // halves
        c = word % halves * 32 + k % 32
        i = top + tap // kernel_width
        j = left + tap % kernel_width
        at = (word < words) & (i >= 0) & (i < height) & (j >= 0) & (j < width) & (c < channels)
        here = start + c * channel_step + i * row_step + j * column_step
        x = tl.load(here, mask=at, other=0).to(total)
        w = tl.load(w_ptr + row * words + word, mask=known & at, other=0)
        value = tl.where((w >> (k % 32)) & 1 != 0, x, -x)
        if masked:
            live = tl.load(live_ptr + row * words + word, mask=known & at, other=0)
            value = tl.where((live >> (k % 32)) & 1 != 0, value, 0.0)
        sums += value
    row = tl.program_id(0) * block_n + tl.arange(0, block_n)
    y = tl.sum(sums, axis=1) * tl.load(alpha_ptr + row, mask=row < rows, other=0).to(total)
    y_at = y_ptr + pixel.to(tl.int64) * rows + row
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=row < rows)
