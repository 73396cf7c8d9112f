"""Whole numbers side by side in as many bits as they take, first bit highest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wiring.errors import WiringError


def number_bits(values: int) -> int:
    """⌈log2 values⌉: the bits that tell so many values apart; 0 of a single one."""
    return max(0, values - 1).bit_length()


def pack_numbers(fields: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Each field's numbers [n] in its number of bits, one field after the other; uint8
    [⌈bits/8⌉]. Raises WiringError for a number that its bits cannot hold."""
    bits = [_bits(numbers, width) for numbers, width in fields]
    joined = np.concatenate(bits) if bits else np.empty(0, np.uint8)
    return torch.from_numpy(np.packbits(joined))


def _bits(numbers: Tensor, width: int) -> npt.NDArray[np.uint8]:
    flat = numbers.detach().flatten().cpu().numpy().astype(np.int64)
    if flat.size and not 0 <= flat.min() <= flat.max() < 2**width:
        raise WiringError(f"{width} bits hold 0..{2**width - 1}, got {flat.min()}..{flat.max()}")
    places = np.arange(width - 1, -1, -1)
    return ((flat[:, None] >> places) & 1).astype(np.uint8).reshape(-1)


class BitReader:
    """Takes fields off what `pack_numbers` made, in order."""

    def __init__(self, packed: Tensor) -> None:
        self._bits = np.unpackbits(packed.cpu().numpy())
        self._place = 0

    def take(self, count: int, width: int) -> Tensor:
        """The next `count` numbers of `width` bits; int64 [count]. Raises WiringError where the
        stream is too short."""
        end = self._place + count * width
        if end > len(self._bits):
            raise WiringError(f"{end} bits were asked of a stream of {len(self._bits)}")
        rows = self._bits[self._place : end].reshape(count, width).astype(np.int64)
        self._place = end
        powers = 2 ** np.arange(width - 1, -1, -1, dtype=np.int64)
        return torch.from_numpy(rows @ powers)
