"""Signs and flags of channels as words, in Triton; memory-bound, one pass over the image.

Words are written as their int32 halves, the lower first. Images are read by their strides: NCHW
32 loads a pixel with neighbouring pixels in neighbouring lanes, anything else as rows of channels.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wiring.kernels.triton_tools import blocks, launch

PIXELS = 64


@triton.jit
def _bit(x, threshold, flip, test: tl.constexpr, plane):
    """What one element's bit is: int32 0 or 1."""
    if test == "sign":
        bit = x >= 0
    elif test == "flag":
        bit = x != 0
    elif test == "inner":
        bit = (x < 1) & (x > -1) | (x != x)
    elif test == "plane":
        bit = (x.to(tl.int32) >> plane) & 1 != 0
    else:
        bit = (x >= threshold) ^ (flip != 0)
    return bit.to(tl.int32)


@triton.jit
def pack_kernel(
    x_ptr, threshold_ptr, flip_ptr, y_ptr, pixels, channels, height, width, image_step,
    channel_step, row_step, column_step, halves, test: tl.constexpr, planes: tl.constexpr,
    block_m: tl.constexpr,
):  # fmt: skip
    """y int32 [·, pixels, halves]: bit i of a half is `test` of channel 32·half + i."""
    pixel = tl.program_id(0) * block_m + tl.arange(0, block_m)
    half = tl.program_id(1)
    plane = tl.program_id(2)
    inside = pixel < pixels
    image = pixel // (height * width)
    at = x_ptr + image.to(tl.int64) * image_step
    at += (pixel // width % height).to(tl.int64) * row_step + pixel % width * column_step
    if planes:
        word = tl.zeros((block_m,), tl.int32)
        for i in tl.static_range(32):
            c = half * 32 + i
            here = c < channels
            x = tl.load(at + c * channel_step, mask=inside & here, other=-1)
            threshold, flip = 0.0, 0
            if test == "threshold":
                threshold = tl.load(threshold_ptr + c, mask=here, other=0)
                flip = tl.load(flip_ptr + c, mask=here, other=0).to(tl.int32)
            if x.dtype.is_floating() and x.dtype != tl.float64:
                x = x.to(tl.float32)
            bit = _bit(x, threshold, flip, test, plane)
            word |= tl.where(here, bit, 0) << i
    else:
        c = half * 32 + tl.arange(0, 32)[None, :]
        here = c < channels
        x = tl.load(at[:, None] + c * channel_step, mask=inside[:, None] & here, other=-1)
        threshold, flip = 0.0, 0
        if test == "threshold":
            threshold = tl.load(threshold_ptr + c, mask=here, other=0)
            flip = tl.load(flip_ptr + c, mask=here, other=0).to(tl.int32)
        if x.dtype.is_floating() and x.dtype != tl.float64:
            x = x.to(tl.float32)
        bit = tl.where(here, _bit(x, threshold, flip, test, plane), 0)
        # A sum of distinct powers of two is the word with those bits.
        word = tl.sum(bit << tl.arange(0, 32)[None, :], axis=1)
    out = y_ptr + (plane.to(tl.int64) * pixels + pixel) * halves + half
    tl.store(out, word, mask=inside)


@triton.jit
def unpack_kernel(
    words_ptr, x_ptr, y_ptr, pixels, channels, padded, halves, dead_ptr, mode: tl.constexpr,
    block_m: tl.constexpr,
):  # fmt: skip
    """y [pixels, padded]: ±1 of each bit (0 where the bit of `dead_ptr` is 0), or x where it is 1.

    Channels from `channels` on are 0.
    """
    pixel = tl.program_id(0) * block_m + tl.arange(0, block_m)[:, None]
    half = tl.program_id(1)
    c = half * 32 + tl.arange(0, 32)[None, :]
    inside = pixel < pixels
    place = tl.arange(0, 32)[None, :]
    start = pixel.to(tl.int64)
    real = half < halves
    word = tl.load(words_ptr + start * halves + half, mask=inside & real, other=0)
    bit = (word >> place) & 1
    if mode == "keep":
        x = tl.load(x_ptr + start * padded + c, mask=inside & (c < channels), other=0)
        value = tl.where(bit != 0, x, 0)
    else:
        value = tl.where(c < channels, 2 * bit - 1, 0)
        if mode == "live":
            live = tl.load(dead_ptr + start * halves + half, mask=inside & real, other=0)
            value = tl.where((live >> place) & 1 != 0, value, 0)
    y = y_ptr + start * padded + c
    tl.store(y, value.to(y_ptr.dtype.element_ty), mask=inside & (c < padded))


def pack_signs(x: Tensor) -> Tensor:
    """Bit 1 where x >= 0; float [N, C, H, W] → int64 [N, H, W, ⌈C/64⌉]."""
    return _pack(x, "sign")[0]


def pack_clipped_signs(x: Tensor) -> Tensor:
    """The words of x >= 0 and of not |x| >= 1: int64 [2, N, H, W, ⌈C/64⌉]."""
    return torch.stack([_pack(x, "sign")[0], _pack(x, "inner")[0]])


def pack_thresholds(x: Tensor, threshold: Tensor, flip: Tensor) -> Tensor:
    """Bit 1 where x >= threshold [C], inverted where flip [C]."""
    return _pack(x, "threshold", 1, threshold.contiguous(), flip.contiguous().view(torch.uint8))[0]


def pack_bits(flags: Tensor) -> Tensor:
    """Bit 1 where a flag is set; bool [N, C, H, W] → int64 [N, H, W, ⌈C/64⌉]."""
    return _pack(flags.view(torch.int8), "flag")[0]


def bit_planes(x: Tensor, bits: int) -> Tensor:
    """The lowest bits of uint8 [N, C, H, W], lowest first: int64 [bits, N, H, W, ⌈C/64⌉]."""
    return _pack(x, "plane", bits)


def unpack_signs(packed: Tensor, channels: int) -> Tensor:
    """+1 where the bit is 1, else -1: float32 [N, C, H, W], channels_last."""
    return _unpack(packed, channels, channels, torch.float32, None).permute(0, 3, 1, 2)


def unpack_bytes(packed: Tensor, live: Tensor | None, channels: int, padded: int) -> Tensor:
    """±1 of each bit, 0 where dead and behind the last channel: int8 [N, H, W, padded]."""
    return _unpack(packed, channels, padded, torch.int8, live)


def keep_bits(x: Tensor, packed: Tensor) -> Tensor:
    """x where its bit is 1, else 0; channels_last."""
    rows = x.permute(0, 2, 3, 1).contiguous()
    result = rows.new_empty(rows.shape)
    halves = packed.contiguous().view(torch.int32)
    pixels, channels = rows[..., 0].numel(), x.shape[1]
    launch(
        unpack_kernel,
        (blocks(pixels, PIXELS), blocks(channels, 32)),
        halves, rows, result, pixels, channels, channels, halves.shape[-1], halves,
        mode="keep", block_m=PIXELS, num_warps=4,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def _pack(
    x: Tensor,
    test: str,
    planes: int = 1,
    threshold: Tensor | None = None,
    flip: Tensor | None = None,
) -> Tensor:
    """int64 [planes, N, H, W, words]."""
    n, channels, height, width = x.shape
    result = x.new_empty(planes, n, height, width, blocks(channels, 64), dtype=torch.int64)
    pixels, halves = n * height * width, 2 * result.shape[-1]
    steps = x.stride()
    launch(
        pack_kernel,
        (blocks(pixels, PIXELS), halves, planes),
        x, x if threshold is None else threshold, x if flip is None else flip,
        result.view(torch.int32), pixels, channels, height, width, steps[0], steps[1], steps[2],
        steps[3], halves, test=test, planes=height * width > 1 and x.is_contiguous(),
        block_m=PIXELS, num_warps=2,
    )  # fmt: skip
    return result


def _unpack(
    packed: Tensor, channels: int, padded: int, dtype: torch.dtype, live: Tensor | None
) -> Tensor:
    """[N, H, W, padded] of that type."""
    n, height, width, _ = packed.shape
    result = packed.new_empty(n, height, width, padded, dtype=dtype)
    halves = packed.contiguous().view(torch.int32)
    alive = halves if live is None else live.contiguous().view(torch.int32)
    pixels = n * height * width
    launch(
        unpack_kernel,
        (blocks(pixels, PIXELS), blocks(padded, 32)),
        halves, halves, result, pixels, channels, padded, halves.shape[-1], alive,
        mode="sign" if live is None else "live", block_m=PIXELS, num_warps=4,
    )  # fmt: skip
    return result
