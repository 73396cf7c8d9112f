"""Huffman codes are the shortest, and what is written is read again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wiring.graph import huffman
from wiring.graph.huffman import (
    Code,
    absolute_places,
    code_lengths,
    coded_bits,
    entropy,
    read_symbols,
    relative_indices,
    write_symbols,
)

counts_of_symbols = st.lists(st.integers(0, 1000), min_size=1, max_size=40)


@given(st.lists(st.integers(0, 19), max_size=200), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_symbols_come_back_and_take_the_bits_that_were_counted(
    symbols: list[int], offset: int
) -> None:
    drawn = np.array(symbols, dtype=np.int64)
    written = write_symbols(drawn, 20)
    assert len(written) == coded_bits(np.bincount(drawn, minlength=20))
    around = np.ones(offset, dtype=bool)
    found, end = read_symbols(np.concatenate([around, written, around]), offset, 20, len(drawn))
    assert np.array_equal(found, drawn)
    assert end == offset + len(written)


@given(counts_of_symbols)
@settings(max_examples=60, deadline=None)
def test_the_mean_length_lies_within_a_bit_of_the_entropy(drawn: list[int]) -> None:
    counts = np.array(drawn)
    if np.count_nonzero(counts) < 2:
        return
    mean = float(counts @ code_lengths(counts)) / counts.sum()
    assert entropy(counts) - 1e-9 <= mean < entropy(counts) + 1


@given(counts_of_symbols)
@settings(max_examples=60, deadline=None)
def test_no_code_is_the_beginning_of_another(drawn: list[int]) -> None:
    lengths = code_lengths(np.array(drawn))
    if np.count_nonzero(lengths) < 2:
        return
    code = Code(lengths)
    words = ["".join("01"[int(bit)] for bit in code.encode(np.array([s]))) for s in code.used]
    assert [len(word) for word in words] == lengths[code.used].tolist()
    for word in words:
        assert [other for other in words if other.startswith(word)] == [word]


def test_the_code_of_the_textbook_is_found() -> None:
    # Cormen et al., Introduction to Algorithms, section 16.3: 224 thousand bits.
    counts = np.array([45, 13, 12, 16, 9, 5])
    assert code_lengths(counts).tolist() == [1, 3, 3, 3, 4, 4]
    assert counts @ code_lengths(counts) == 224


def test_a_symbol_alone_takes_no_bits_behind_its_table() -> None:
    written = write_symbols(np.full(1000, 3), 8)
    assert len(written) == 3 + 8
    assert np.array_equal(read_symbols(written, 0, 8, 1000)[0], np.full(1000, 3))


def test_nothing_is_written_as_an_empty_table() -> None:
    written = write_symbols(np.zeros(0, dtype=np.int64), 8)
    assert len(written) == 3
    assert len(read_symbols(written, 0, 8, 0)[0]) == 0


def test_long_streams_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.random.default_rng(0).geometric(0.3, 500) - 1
    written = write_symbols(drawn, 40)
    monkeypatch.setattr(huffman, "CHUNK", 7)
    assert np.array_equal(write_symbols(drawn, 40), written)
    assert np.array_equal(read_symbols(written, 0, 40, 500)[0], drawn)


def test_streams_that_were_not_written_so_are_refused() -> None:
    written = write_symbols(np.arange(8).repeat(4), 8)
    for kept in (2, 10, len(written) - 1):
        with pytest.raises(ValueError, match="a Huffman stream ends"):
            read_symbols(written[:kept], 0, 8, 32)
    with pytest.raises(ValueError, match="no complete code"):
        Code(np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="without symbols"):
        read_symbols(write_symbols(np.zeros(0, dtype=np.int64), 8), 0, 8, 1)


@given(st.sets(st.integers(0, 400), max_size=30), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_places_come_back_from_their_gaps(drawn: set[int], width: int) -> None:
    places = np.array(sorted(drawn), dtype=np.int64)
    gaps, real = relative_indices(places, width)
    assert ((gaps >= 0) & (gaps < 1 << width)).all()
    assert np.array_equal(absolute_places(gaps)[real], places)


def test_a_filler_takes_the_span_that_a_gap_cannot_hold() -> None:
    # The paper's figure 2: places 1, 4 and 15 with 3 bits; the distance of 11 needs a filler of 8.
    gaps, real = relative_indices(np.array([1, 4, 15]), 3)
    assert (gaps + 1).tolist() == [2, 3, 8, 3]
    assert real.tolist() == [True, True, False, True]
