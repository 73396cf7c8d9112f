"""Signs and flags of channels as 64-bit words: 1 bit where a float takes 32.

Bit i % 64 of word i // 64 belongs to channel i; the bits behind the last channel are 0. Weights
[D, S, kh, kw] pack like images, one word row per filter position.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads

BITS = 64
_native = native("bitpack")


def words(channels: int) -> int:
    """Words that `channels` bits take."""
    return (channels + BITS - 1) // BITS


def _check_image(x: Tensor) -> None:
    if x.dim() != 4:
        raise WiringError(f"packing takes [N, channels, H, W], got {list(x.shape)}")


def _pack(flags: Tensor) -> Tensor:
    """bool [N, C, H, W] → int64 [N, H, W, words]."""
    n, c, h, w = flags.shape
    rows = torch.zeros(n, h, w, words(c) * BITS, dtype=torch.int64, device=flags.device)
    rows[..., :c] = flags.permute(0, 2, 3, 1)
    place = torch.arange(BITS, device=flags.device)
    # A sum of distinct powers of two wraps to the word with those bits.
    return (rows.view(n, h, w, -1, BITS) << place).sum(dim=-1)


@custom_op("wiring::pack_signs", mutates_args=())
def pack_signs(x: Tensor) -> Tensor:
    """Bit 1 where x >= 0 (0 counts as +, NaN as -).

    x float [N, C, H, W]; returns int64 [N, H, W, ⌈C/64⌉]. Raises WiringError for another shape.
    """
    _check_image(x)
    return _pack(x >= 0)


@pack_signs.register_fake
def _(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n, h, w, words(c), dtype=torch.int64)


@pack_signs.register_kernel("cpu")
def _(x: Tensor) -> Tensor:
    _check_image(x)
    kernel = _native()
    if kernel is None or x.dtype != torch.float32:
        return _pack(x >= 0)
    x = x.contiguous(memory_format=torch.channels_last)
    n, c, h, w = x.shape
    result = x.new_empty(n, h, w, words(c), dtype=torch.int64)
    kernel.pack_signs(x.data_ptr(), n * h * w, c, result.data_ptr(), threads())
    return cast(Tensor, result)
