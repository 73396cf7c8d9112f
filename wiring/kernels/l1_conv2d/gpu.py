"""Sums of |w - x| and their gradients in Triton, without M × N × K anywhere.

The image is read in place: a program owns a tile of outputs in registers and walks over taps and
channels, two instructions a term. Pixels and filters run along the lanes, so images are read as
NCHW and filters as [taps, S, D]; the copies that takes are the only memory beside the output.

A dead edge costs what a live one does: with m = 0 and w = 0 its term is |m·x - w| = 0, and
m·x - w is one FFMA where x - w is one FADD. So x must be finite where edges are dead.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from wiring.kernels.l1_conv2d.gpu_kernels import (
    bytes_kernel,
    pull_kernel,
    side_kernel,
    sums_kernel,
)
from wiring.kernels.triton_tools import (
    FEW_PROGRAMS,
    REGISTERS,
    Window,
    block_for,
    blocks,
    launch,
    tile,
)

SPLIT_FLOATS = 1 << 24  # at most 64 MiB of partial sums for the weights' sign gradient


def l1_conv2d(x: Tensor, weight: Tensor, live: Tensor | None, stride: int, padding: int) -> Tensor:
    """-Σ_live |w - x|; x [N, S, H, W]; returns [N, D, H', W'] in x's dtype, summed in float32."""
    window = _window(x, weight, stride, padding)
    x = x.contiguous()
    result = window.output(x, x.dtype)
    w, m = _planes(weight, live, (2, 3, 1, 0), 1.0, 0.0)
    block_m, block_n, warps = tile(window.pixels, window.rows)
    launch(
        sums_kernel,
        (blocks(window.pixels, block_m), blocks(window.rows, block_n)),
        x, w, m, result, window.pixels, window.rows, *_sizes(window),
        taps=window.taps, kernel_width=window.kernel_width, masked=live is not None,
        total=_total(x), block_m=block_m, block_n=block_n,
        block_k=_unroll(window.channels),
        num_warps=warps, maxnreg=REGISTERS,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def l1_input_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    stride: int,
    padding: int,
    mode: str,
) -> Tensor:
    """Σ_live g · (w - x), clamped to ±1 (`clipped`), its `sign`, or `full`; as x, channels_last."""
    if mode == "full":
        return _full_pull(grad, x, weight, live, stride, padding)
    window = _window(x, weight, stride, padding)
    images, grad = x.permute(0, 2, 3, 1).contiguous(), grad.contiguous()
    result = images.new_empty(images.shape)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    clipped = mode == "clipped"
    w, m = _planes(weight, live, (2, 3, 0, 1), *((0.5, 0.5) if clipped else (1.0, 0.0)))
    # The signs of a larger tile do not fit the registers.
    block_m, block_n, warps = tile(pixels, window.channels, 64 if clipped else 32)
    launch(
        pull_kernel,
        (blocks(pixels, block_m), blocks(window.channels, block_n)),
        images, w, m, grad, result, pixels, window.rows, *_sizes(window),
        taps=window.taps, kernel_width=window.kernel_width, masked=live is not None,
        clipped=clipped, total=_total(x), block_m=block_m, block_n=block_n,
        block_k=_unroll(window.rows),
        num_warps=warps, maxnreg=REGISTERS,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def l1_weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    learn: Tensor | None,
    stride: int,
    padding: int,
    mode: str,
) -> Tensor:
    """Σ over pixels of g · (x - w) (`full`) or g · sign(x - w) (`sign`) where `learn`, else 0.

    `full` is one matrix product: gᵀx - w·Σg. `sign` sums parts of the pixels side by side, then
    adds up the parts: the same result on every run.
    """
    wide = _precise(weight)
    if not (grad.numel() and weight.numel()):
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    if mode == "full":
        grad, w = grad.to(wide), weight.to(wide)
        gradient = _convolution_gradient(grad, x.to(wide), w, stride, padding, inputs=False)
        gradient = gradient - w * grad.sum(dim=(0, 2, 3)).view(-1, 1, 1, 1)
    else:
        gradient = _side(grad, x, weight, stride, padding)
    if learn is not None:
        gradient = torch.where(learn, gradient, 0.0)
    return gradient.to(weight.dtype).contiguous()


def l1_conv2d_uint8(
    x: Tensor, weight: Tensor, live: Tensor | None, padding_value: int, stride: int, padding: int
) -> Tensor:
    """-Σ_live |w - x| of bytes, outside pixels `padding_value`; returns int32 [N, D, H', W']."""
    window = _window(x, weight, stride, padding)
    lanes = -window.channels % 4
    # Channels that fill up a word are equal on both sides.
    x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, lanes), value=padding_value)
    weight = torch.nn.functional.pad(weight, (0, 0, 0, 0, 0, lanes), value=padding_value)
    words = x.shape[1] // 4
    images = _words(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
    w = m = _words(weight.permute(2, 3, 0, 1)).transpose(2, 3).contiguous()
    if live is not None:
        alive = torch.nn.functional.pad(live, (0, 0, 0, 0, 0, lanes)).to(torch.uint8) * 255
        m = _words(alive.permute(2, 3, 0, 1)).transpose(2, 3).contiguous()
        w = w & m
    outside = int.from_bytes(bytes([padding_value] * 4), "little", signed=True)
    result = window.output(x, torch.int32)
    block_m, block_n, warps = tile(window.pixels, window.rows)
    launch(
        bytes_kernel,
        (blocks(window.pixels, block_m), blocks(window.rows, block_n)),
        images, w, m, result, outside, window.pixels, window.rows, words, *_sizes(window)[1:],
        taps=window.taps, kernel_width=window.kernel_width, masked=live is not None,
        block_m=block_m, block_n=block_n, block_k=_unroll(words),
        num_warps=warps, maxnreg=REGISTERS,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


def _window(x: Tensor, weight: Tensor, stride: int, padding: int) -> Window:
    rows, channels, kernel_height, kernel_width = weight.shape
    images, _, height, width = x.shape
    return Window(
        images, channels, height, width, rows, kernel_height, kernel_width, stride, padding
    )


def _sizes(window: Window) -> tuple[int, ...]:
    return (
        window.channels, window.height, window.width, window.out_height, window.out_width,
        window.stride, window.padding,
    )  # fmt: skip


def _total(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _precise(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _unroll(channels: int) -> int:
    """Steps written out: the largest of 4, 2, 1 that divides the channels."""
    return next(k for k in (4, 2, 1) if channels % k == 0)


def _planes(
    weight: Tensor, live: Tensor | None, order: tuple[int, ...], factor: float, shift: float
) -> tuple[Tensor, Tensor]:
    """factor·w + shift, with w = 0 where dead, and live, as float planes in that order."""
    w = weight.to(_precise(weight))
    m = w if live is None else live.to(w.dtype)
    w = (w if live is None else torch.where(live, w, 0.0)) * factor + shift
    return w.permute(order).contiguous(), m.permute(order).contiguous()


def _words(x: Tensor) -> Tensor:
    """uint8 [..., 4·n] → int32 [..., n]."""
    # Flat: a view as another type wants every stride to be that of a contiguous tensor.
    words = x.reshape(-1).view(torch.int32)
    return words.view(*x.shape[:-1], x.shape[-1] // 4)


def _full_pull(
    grad: Tensor, x: Tensor, weight: Tensor, live: Tensor | None, stride: int, padding: int
) -> Tensor:
    """Two transposed convolutions: Σ g·w - x·Σ g over live edges."""
    wide = _precise(x)
    grad, images, w = (t.to(wide) for t in (grad, x, weight))
    ones = torch.ones_like(w) if live is None else live.to(wide)
    if not (grad.numel() and weight.numel()):
        result = torch.zeros_like(images)
    else:
        w = w if live is None else torch.where(live, w, 0.0)
        result = _convolution_gradient(grad, images, w, stride, padding, inputs=True)
        result -= images * _convolution_gradient(grad, images, ones, stride, padding, inputs=True)
    return result.to(x.dtype).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _convolution_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, *, inputs: bool
) -> Tensor:
    """The vendor's gradient of conv2d(x, weight) with respect to x, or to the weight."""
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
        [inputs, not inputs, False],
    )  # fmt: skip
    result: Tensor = gradients[0 if inputs else 1]
    return result


def _side(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Σ over pixels of g · sign(x - w), wide, a view of [D, kh, kw, S]."""
    window = _window(x, weight, stride, padding)
    images = x.permute(0, 2, 3, 1).contiguous()
    rows = grad.permute(0, 2, 3, 1).contiguous()
    w = weight.permute(0, 2, 3, 1).contiguous()
    block_n, block_c = 32, block_for(window.channels, 32, 64)
    channel_blocks = blocks(window.channels, block_c)
    tiles = blocks(window.rows, block_n) * window.taps * channel_blocks
    parts = max(1, min(
        blocks(4 * FEW_PROGRAMS, tiles), SPLIT_FLOATS // max(1, w.numel()),
        blocks(window.pixels, 64),
    ))  # fmt: skip
    share = 4 * blocks(blocks(window.pixels, parts), 4)
    result = w.new_zeros((parts, *w.shape), dtype=_precise(w))
    launch(
        side_kernel,
        (blocks(window.rows, block_n), window.taps * channel_blocks, parts),
        images, w, rows, result, window.pixels, share, window.rows, *_sizes(window),
        window.taps, window.kernel_width, channel_blocks,
        total=_total(x), block_n=block_n, block_c=block_c, block_k=4,
        num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
    return result.sum(dim=0).permute(0, 3, 1, 2)
