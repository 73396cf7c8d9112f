"""xxh32 of many keys at once: Collet's xxHash, 32 bits, over whole little-endian words.

For every key of n words w and a seed s, all arithmetic modulo 2³²:

    n ≥ 4, per stripe of four words and its lane a:  a ← rotl(a + w·P2, 13)·P1,
        lanes begin at s + P1 + P2, s + P2, s, s - P1;
        h = rotl(a₁, 1) + rotl(a₂, 7) + rotl(a₃, 12) + rotl(a₄, 18)
    else h = s + P5
    h ← h + 4n;  per remaining word:  h ← rotl(h + w·P3, 17)·P4
    h ← (h ^ h >> 15)·P2;  h ← (h ^ h >> 13)·P3;  h ← h ^ h >> 16

It serves methods whose wiring or whose sharing of weights follows from a seed, and is recomputed
wherever it is needed instead of being stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wiring.errors import WiringError

_P1, _P2, _P3, _P4, _P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
_WORD = 2**32


def xxh32(words: Sequence[Tensor], seed: int = 0) -> Tensor:
    """The hashes of keys, int64 in 0..2³²-1, of the shape that the words broadcast to.

    words: the first, second, … 32-bit word of every key, integer tensors with values in
    -2³¹..2³²-1 (taken modulo 2³²). The result is that of `xxhash.xxh32` on the words' little-endian
    bytes. Raises WiringError for no words and for a seed that is not an unsigned 32-bit number.
    """
    if not words:
        raise WiringError("xxh32 takes keys of at least one word, got none")
    if not 0 <= seed < _WORD:
        raise WiringError(f"a seed of xxh32 is in 0..{_WORD - 1}, got {seed}")
    keys = [_wrap(word) for word in words]
    count, rest = len(keys), keys
    if count >= 4:
        lanes = [_number(seed + _P1 + _P2), _number(seed + _P2), _number(seed), _number(seed - _P1)]
        stripes = count // 4
        accumulators: list[Tensor] = []
        for lane, begin in enumerate(lanes):
            value = torch.full_like(keys[lane], begin)
            for stripe in range(stripes):
                value = _rotl(value + keys[4 * stripe + lane] * _number(_P2), 13) * _number(_P1)
            accumulators.append(value)
        turns = (1, 7, 12, 18)
        parts = [_rotl(value, turn) for value, turn in zip(accumulators, turns, strict=True)]
        state = parts[0] + parts[1] + parts[2] + parts[3]
        rest = keys[4 * stripes :]
    else:
        state = torch.full_like(keys[0], _number(seed + _P5))
    state = state + 4 * count
    for key in rest:
        state = _rotl(state + key * _number(_P3), 17) * _number(_P4)
    state = (state ^ _shifted(state, 15)) * _number(_P2)
    state = (state ^ _shifted(state, 13)) * _number(_P3)
    state = state ^ _shifted(state, 16)
    return state.to(torch.int64) & (_WORD - 1)


def coin(words: Sequence[Tensor], seed: int = 0) -> Tensor:
    """0 or 1 for every key, int64, by a hash other than `xxh32(words, seed)`."""
    # The highest bit: a remainder of the same hash would be taken of the lower ones.
    return xxh32(words, other_seed(seed)) >> 31


def other_seed(seed: int) -> int:
    """That of `coin` beside a hash of this seed."""
    return seed ^ 0x9E3779B9


def _number(value: int) -> int:
    """A number modulo 2³² as a signed 32-bit integer: products of int32 tensors wrap around."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


def _wrap(word: Tensor) -> Tensor:
    if word.dtype == torch.int32:
        return word
    low = word.to(torch.int64) & (_WORD - 1)
    return torch.where(low >= _WORD // 2, low - _WORD, low).to(torch.int32)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: that of int32 tensors carries the sign along."""
    shifted: Tensor = (value >> bits) & (2 ** (32 - bits) - 1)
    return shifted


def _rotl(value: Tensor, bits: int) -> Tensor:
    return (value << bits) | _shifted(value, 32 - bits)
