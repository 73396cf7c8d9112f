"""How many pixels of its input a convolution reads: what comes before its kernel runs on those."""

from __future__ import annotations

import math


def pixels_read(positions: int, kernel: tuple[int, int], stride: int, padding: int) -> int:
    """The input pixels, padding apart, that a kernel [kh, kw] reads for `positions` outputs.

    Outputs are taken to lie in a square, or one wider by a column, or else in one row. Several
    sizes of input give so many outputs where stride > 1; the largest is taken.
    """
    height = math.isqrt(positions)
    width = height + 1 if height * (height + 1) == positions else height
    if height * width != positions:
        height, width = 1, positions
    sides = zip((height, width), kernel, strict=True)
    return math.prod(_side(count, size, stride, padding) for count, size in sides)


def _side(count: int, size: int, stride: int, padding: int) -> int:
    """The same along one side: of windows `stride` apart, the first begins in the padding."""
    if size < stride:  # windows leave gaps
        return max(1, count * size - min(padding, size))
    pixels = count * stride + size - 2 * padding - 1
    return max(1, min((count - 1) * stride + size - padding, pixels))
