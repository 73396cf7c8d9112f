"""Bit streams: numbers of fixed width, canonical Huffman codes, gaps between places.

Huffman (*A method for the construction of minimum-redundancy codes*, Proc. IRE 1952): the two
rarest symbols are joined, again and again. With the entropy H = -Σ p log2 p of the symbols, their
mean length is in H ≤ L < H + 1. Codes are canonical: ordered by length, then by symbol, they count
upwards, so that their lengths say all. An alphabet of which one symbol occurs takes no bits.

Relative indices (Han et al., *Deep Compression*, ICLR 2016, section 2): of ascending places the
distance to the one before is kept, in `width` bits; where it is longer than 2^width, an entry
without a place of its own, a *filler*, takes the first 2^width of it.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bits = NDArray[np.bool_]

LENGTH_BITS = 3  # that say in how many bits a table holds its lengths
CHUNK = 1 << 18


def to_bits(values: Ints, width: int) -> Bits:
    """Each value's lowest `width` bits, lowest first; bool [n · width]."""
    return ((values[:, None] >> np.arange(width)) & 1).astype(bool).reshape(-1)


def from_bits(bits: Bits, width: int) -> Ints:
    """Inverse of `to_bits`, for a width of at least 1."""
    values: Ints = bits.reshape(-1, width) @ (1 << np.arange(width, dtype=np.int64))
    return values


def code_lengths(counts: Ints) -> Ints:
    """Bits of each symbol's code, from how often it occurs [n]; 0 for those that do not, and 1 for
    one that is alone."""
    lengths = np.zeros(len(counts), dtype=np.int64)
    used = np.flatnonzero(counts).tolist()
    if len(used) == 1:
        lengths[used] = 1
    # (count, age, symbols below): of equal counts the one that is older comes first.
    heap = [(int(counts[symbol]), symbol, [symbol]) for symbol in used]
    heapq.heapify(heap)
    age = len(counts)
    while len(heap) > 1:
        few, _, below = heapq.heappop(heap)
        more, _, beside = heapq.heappop(heap)
        below = below + beside
        lengths[below] += 1
        heapq.heappush(heap, (few + more, age, below))
        age += 1
    return lengths


class Code:
    """The canonical code of given lengths. Raises ValueError where no complete code has them."""

    def __init__(self, lengths: Ints) -> None:
        self.used = np.flatnonzero(lengths)
        self.ordered = self.used[np.argsort(lengths[self.used], kind="stable")]
        self.alone = len(self.used) == 1
        self.longest = int(lengths.max(initial=0))
        sizes = np.bincount(lengths[self.used], minlength=self.longest + 1)
        room = sum(int(sizes[n]) << (self.longest - n) for n in range(1, self.longest + 1))
        if len(self.used) > 1 and room != 1 << self.longest:
            raise ValueError("the lengths of a Huffman table are those of no complete code")
        # For each length that occurs: its first code, and where its symbols begin in `ordered`.
        self.lengths = np.flatnonzero(sizes)
        self.offsets = np.concatenate([[0], np.cumsum(sizes[self.lengths])[:-1]]).astype(np.int64)
        firsts: list[int] = []
        code = before = 0
        for length in self.lengths.tolist():
            code <<= length - before
            firsts.append(code)
            code, before = code + int(sizes[length]), length
        self.firsts = np.array(firsts, dtype=np.int64)
        self.ends: Ints = (self.firsts + sizes[self.lengths]) << (self.longest - self.lengths)

    def encode(self, symbols: Ints) -> Bits:
        """The codes of symbols [n], one after the other, highest bit first."""
        if self.alone or not len(symbols):
            return np.zeros(0, dtype=bool)
        alphabet = int(self.used[-1]) + 1
        lengths, codes = np.zeros(alphabet, dtype=np.int64), np.zeros(alphabet, dtype=np.int64)
        for row, length in enumerate(self.lengths):
            end = self.offsets[row + 1] if row + 1 < len(self.offsets) else len(self.ordered)
            members = self.ordered[self.offsets[row] : end]
            lengths[members] = length
            codes[members] = self.firsts[row] + np.arange(len(members))
        places = np.arange(self.longest)
        parts = []
        for begin in range(0, len(symbols), CHUNK):
            some = symbols[begin : begin + CHUNK, None]
            bits = (codes[some] >> np.maximum(lengths[some] - 1 - places, 0)) & 1
            parts.append(bits[places < lengths[some]].astype(bool))
        return np.concatenate(parts)

    def decode(self, bits: Bits, start: int, count: int) -> tuple[Ints, int]:
        """(`count` symbols that begin at bit `start`, where they end). Raises ValueError where
        the bits do not suffice."""
        if count and not len(self.used):
            raise ValueError("a Huffman table without symbols codes nothing")
        if self.alone or not count:
            return np.full(count, self.used[0] if count else 0, dtype=np.int64), start
        symbols = np.empty(count, dtype=np.int64)
        done, place = 0, start
        while done < count:
            window, row = self._windows(bits, place)
            here, visited = 0, list[int]()
            steps = self.lengths[row].tolist()
            while here < len(steps) and done + len(visited) < count:
                visited.append(here)
                here += steps[here]
            rows = row[visited]
            codes = window[visited] >> (self.longest - self.lengths[rows])
            found = self.ordered[self.offsets[rows] + codes - self.firsts[rows]]
            symbols[done : done + len(visited)] = found
            done, place = done + len(visited), place + here
            if place > len(bits) or (done < count and place == len(bits)):
                raise ValueError("a Huffman stream ends before its last symbol")
        return symbols, place

    def _windows(self, bits: Bits, place: int) -> tuple[Ints, Ints]:
        """The next `longest` bits from each of the places that follow, and the row of the code
        that would begin there."""
        size = min(CHUNK, len(bits) - place)
        near = np.zeros(size + self.longest, dtype=np.int64)
        taken = bits[place : place + len(near)]
        near[: len(taken)] = taken
        window = np.zeros(size, dtype=np.int64)
        for shift in range(self.longest):
            window = (window << 1) | near[shift : shift + size]
        return window, np.searchsorted(self.ends, window, side="right")


def coded_bits(counts: Ints) -> int:
    """The bits of `write_symbols`, from how often each symbol of the alphabet occurs [n]."""
    lengths = code_lengths(counts)
    table = LENGTH_BITS + len(counts) * int(lengths.max(initial=0)).bit_length()
    return table + (int(counts @ lengths) if np.count_nonzero(counts) > 1 else 0)


def write_symbols(symbols: Ints, alphabet: int) -> Bits:
    """A table of code lengths for symbols 0..alphabet-1, and the codes of `symbols` [n]."""
    lengths = code_lengths(np.bincount(symbols, minlength=alphabet))
    width = int(lengths.max(initial=0)).bit_length()
    head = to_bits(np.array([width]), LENGTH_BITS)
    return np.concatenate([head, to_bits(lengths, width), Code(lengths).encode(symbols)])


def read_symbols(bits: Bits, start: int, alphabet: int, count: int) -> tuple[Ints, int]:
    """Inverse of `write_symbols`: (`count` symbols, the place behind them). Raises ValueError for
    bits that were not written so."""
    place = start + LENGTH_BITS
    if place > len(bits):
        raise ValueError("a Huffman stream ends before its table")
    width = int(from_bits(bits[start:place], LENGTH_BITS)[0])
    end = place + alphabet * width
    if end > len(bits):
        raise ValueError("a Huffman stream ends inside its table")
    lengths = from_bits(bits[place:end], width) if width else np.zeros(alphabet, dtype=np.int64)
    return Code(lengths).decode(bits, end, count)


def relative_indices(places: Ints, width: int) -> tuple[Ints, Bits]:
    """Distances between ascending places, less 1, in `width` bits, and which are no fillers.

    places [n] from 0; both results [n + fillers].
    """
    span = 1 << width
    distances = np.diff(places, prepend=-1) - 1
    fillers = distances // span
    ends = np.cumsum(fillers + 1) - 1
    entries = int(ends[-1]) + 1 if len(ends) else 0
    gaps = np.full(entries, span - 1, dtype=np.int64)
    real = np.zeros(entries, dtype=bool)
    gaps[ends] = distances % span
    real[ends] = True
    return gaps, real


def absolute_places(gaps: Ints) -> Ints:
    """The place of every entry, fillers too; inverse of `relative_indices`."""
    places: Ints = np.cumsum(gaps + 1) - 1
    return places


def entropy(counts: Ints) -> float:
    """-Σ p log2 p of symbols that occur so often, bits a symbol."""
    shares = [count / int(counts.sum()) for count in counts.tolist() if count]
    return math.fsum(-share * math.log2(share) for share in shares)
