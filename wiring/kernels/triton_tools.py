"""What the Triton kernels share: popcount and byte differences, shapes of a convolution, launching.

Imported by the `gpu.py` files alone: the rest of `wiring` works without Triton.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, misc"

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import libdevice

FEW_PROGRAMS = 132  # multiprocessors of an H100: fewer tiles than that leave some idle
# What the compiler may take: left to itself it spills a few to fit one more block in.
REGISTERS = 255


class Grid(Protocol):
    """A kernel under `@triton.jit`."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Window:
    """Sizes of a convolution of images [N, C, H, W] with filters [D, C, kh, kw]."""

    images: int
    channels: int
    height: int
    width: int
    rows: int
    kernel_height: int
    kernel_width: int
    stride: int
    padding: int

    @property
    def out_height(self) -> int:
        return (self.height + 2 * self.padding - self.kernel_height) // self.stride + 1

    @property
    def out_width(self) -> int:
        return (self.width + 2 * self.padding - self.kernel_width) // self.stride + 1

    @property
    def pixels(self) -> int:
        """Output pixels of the whole batch."""
        return self.images * self.out_height * self.out_width

    @property
    def taps(self) -> int:
        return self.kernel_height * self.kernel_width

    def output(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """An output to fill: [N, H', W', D] in memory."""
        shape = (self.images, self.out_height, self.out_width, self.rows)
        return like.new_empty(shape, dtype=dtype)


def launch(kernel: Grid, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run a kernel on the device of its first argument; a grid of no programs is no launch."""
    if not all(grid):
        return
    device = args[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*args, **options)


def blocks(size: int, block: int) -> int:
    """Blocks that cover `size`."""
    return -(-size // block)


def block_for(size: int, least: int, most: int) -> int:
    """The power of two that covers `size`, within bounds that are powers of two."""
    return min(most, max(least, 1 << max(0, size - 1).bit_length()))


def tile(pixels: int, rows: int, most: int = 64) -> tuple[int, int, int]:
    """(pixels, rows, warps) of a program that sums on a tile held in registers: the largest that
    keeps the device busy, its sides at most `most`."""
    # Sides stay below the number of threads: a row or column with an element for every thread
    # would give the sums its own layout, in which a thread loads all of the other operand.
    for block_m, block_n, warps in ((64, 64, 4), (64, 32, 4), (32, 32, 2)):
        programs = blocks(pixels, block_m) * blocks(rows, block_n)
        fits = block_m <= most and block_n <= block_for(rows, 32, 64)
        if fits and programs >= FEW_PROGRAMS:
            return block_m, block_n, warps
    return 16, 32, 2


def _dual(function):
    """Triton calls a builtin with its semantic when it compiles, and without when it interprets."""
    setattr(function, tl.core.TRITON_BUILTIN, True)
    return function


def _interpreted(data: np.ndarray[Any, Any]):
    from triton.runtime.interpreter import TensorHandle

    shape = tl.block_type(tl.int32, list(data.shape)) if data.ndim else tl.int32
    return tl.tensor(TensorHandle(data.astype(np.int32), tl.int32), shape)


@_dual
def popc(x, _semantic=None):
    """Bits set in each int32: the POPC instruction."""
    if _semantic is None:
        return _interpreted(np.bitwise_count(x.handle.data.view(np.uint32)))
    return libdevice.popc(x, _semantic=_semantic)


@_dual
def absdiff4(a, b, total, _semantic=None):
    """total + the sum of |a - b| over the four unsigned bytes of each int32: VABSDIFF4."""
    if _semantic is None:
        operands = np.broadcast_arrays(a.handle.data, b.handle.data)
        first, second = (
            np.ascontiguousarray(t).view(np.uint8).reshape(*t.shape, 4).astype(np.int32)
            for t in operands
        )
        return _interpreted(total.handle.data + np.abs(first - second).sum(axis=-1))
    return tl.inline_asm_elementwise(
        "vabsdiff4.u32.u32.u32.add $0, $1, $2, $3;",
        "=r,r,r,r",
        [a, b, total],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
        _semantic=_semantic,
    )
