"""Which of K shared weights each edge takes, and with which sign, by two hashes of its position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads
from wiring.kernels.xxhash32.definition import coin, other_seed, xxh32

MOST_WEIGHTS = 2**30  # K and -K both fit in 32 bits
_native = native("xxhash32")


def _check(values: Tensor, row: int, seed: int, first: int, last: int) -> None:
    if values.dim() != 1 or not 1 <= len(values) <= MOST_WEIGHTS:
        raise WiringError(f"shared weights are [1..{MOST_WEIGHTS}], got {list(values.shape)}")
    if not 0 <= seed < 2**32:
        raise WiringError(f"a seed of xxh32 is in 0..{2**32 - 1}, got {seed}")
    if row < 0 or not 0 <= first <= last < 2**31:
        raise WiringError(f"there are no edges {first}..{last} in rows of {row}")


@custom_op("wiring::hashed_places", mutates_args=())
def hashed_places(values: Tensor, row: int, seed: int, first: int, last: int) -> Tensor:
    """Where each edge finds its weight among `values` [K], behind which stand their negatives.

    For the destinations i in first..last-1, with `row` edges j each: xxh32(i, j; seed) mod K, and K
    more where ξ is -1; i and j as 32-bit little-endian words. Returns int32 [(last - first)·row] on
    the device of `values`, of which nothing but number and device is read. Raises WiringError.
    """
    _check(values, row, seed, first, last)
    return _places(values, row, seed, first, last)


def _places(values: Tensor, row: int, seed: int, first: int, last: int) -> Tensor:
    i = torch.arange(first, last, device=values.device, dtype=torch.int32)[:, None]
    j = torch.arange(row, device=values.device, dtype=torch.int32)[None]
    chosen = xxh32((i, j), seed) % len(values) + len(values) * coin((i, j), seed)
    return chosen.to(torch.int32).flatten()


@hashed_places.register_fake
def _(values: Tensor, row: int, seed: int, first: int, last: int) -> Tensor:
    _check(values, row, seed, first, last)
    return values.new_empty((last - first) * row, dtype=torch.int32)


@hashed_places.register_kernel("cpu")
def _(values: Tensor, row: int, seed: int, first: int, last: int) -> Tensor:
    _check(values, row, seed, first, last)
    kernel = _native()
    if kernel is None:
        return _places(values, row, seed, first, last)
    places = torch.empty((last - first) * row, dtype=torch.int32)
    kernel.places(
        row, len(values), seed, other_seed(seed), first, last, places.data_ptr(), threads()
    )
    return places
