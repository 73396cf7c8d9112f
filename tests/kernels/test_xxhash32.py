"""Hashes of positions are those of the xxHash library, on every back end."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import torch
import xxhash
from torch.library import opcheck

from wiring.errors import WiringError
from wiring.kernels import backends
from wiring.kernels.xxhash32 import coin, hashed_places, xxh32


def reference(words: list[int], seed: int) -> int:
    return xxhash.xxh32(struct.pack(f"<{len(words)}I", *words), seed=seed).intdigest()


@pytest.mark.parametrize("seed", [0, 1, 0x9E3779B1, 2**32 - 1])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
def test_hashes_are_those_of_the_xxhash_package(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(count)
    keys = torch.randint(0, 2**32, (count, 20), generator=generator)
    keys[:, 0], keys[:, 1] = 0, 2**32 - 1
    expected = [reference(key, seed) for key in keys.T.tolist()]
    assert xxh32(list(keys), seed).tolist() == expected


def test_words_of_a_key_broadcast_and_may_be_of_any_integer_type() -> None:
    i, j = torch.arange(3, dtype=torch.int32)[:, None], torch.arange(-2, 3)[None]
    found = xxh32((i, j), 7)
    assert found.shape == (3, 5)
    assert found[2, 1] == reference([2, 2**32 - 1], 7)


@pytest.mark.parametrize(("words", "seed"), [((), 0), ((torch.zeros(1),), -1)])
def test_no_words_and_seeds_beyond_32_bits_are_refused(words: Any, seed: int) -> None:
    with pytest.raises(WiringError, match=r"got (none|-1)"):
        xxh32(words, seed)


def test_a_coin_is_even_and_independent_of_the_hash_beside_it() -> None:
    keys = torch.arange(40_000)
    sides, lowest = coin((keys,), 3), xxh32((keys,), 3) % 2
    agreement = (sides == lowest).double().mean().item()
    assert sides.double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert agreement == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", backends.instruction_sets())
@pytest.mark.parametrize("count", [1, 2, 7, 1000, 2**16 + 1, 2**30])
def test_places_are_remainders_of_the_hash_and_coins_of_another(name: str, count: int) -> None:
    # Weights of which nothing but the number is read, and that take no memory.
    values = torch.zeros(1).expand(count)
    row, first, last, seed = 301, 5, 9, 0xFFFFFFFF
    with backends.use(name):
        places = hashed_places(values, row, seed, first, last).view(4, row)
    assert places.dtype == torch.int32
    for i, j in [(0, 0), (0, 300), (1, 255), (2, 256), (3, 300)]:
        key = [first + i, j]
        minus = reference(key, seed ^ 0x9E3779B9) >= 2**31
        assert places[i, j] == reference(key, seed) % count + count * minus
    with backends.use("definition"):
        assert torch.equal(hashed_places(values, row, seed, first, last).view(4, row), places)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_place_depends_on_the_number_of_threads_or_on_the_rows_asked_for(threads: int) -> None:
    values, before = torch.zeros(50), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        every = hashed_places(values, 17, 1, 0, 10)
        parts = [hashed_places(values, 17, 1, i, i + 1) for i in range(10)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat(parts), every)
    assert hashed_places(values, 17, 1, 3, 3).shape == (0,)


def test_places_are_an_operation_that_pytorch_can_trace() -> None:
    opcheck(hashed_places, (torch.zeros(7), 5, 3, 1, 4))


@pytest.mark.parametrize(
    ("values", "seed", "last", "message"),
    [
        (torch.zeros(0), 0, 1, r"shared weights are \[1\.\.1073741824\], got \[0\]"),
        (torch.zeros(3), 2**32, 1, "seed of xxh32"),
        (torch.zeros(3), 0, -1, r"no edges 0\.\.-1 in rows of 4"),
    ],
)
def test_places_that_cannot_be_are_refused(
    values: torch.Tensor, seed: int, last: int, message: str
) -> None:
    with pytest.raises(WiringError, match=message):
        hashed_places(values, 4, seed, 0, last)
