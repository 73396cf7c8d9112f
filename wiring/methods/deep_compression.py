"""y_v = Σ_live c[code_uv] x_u: a rule has pruned the edges; then every live weight is one of k
numbers, found by k-means from centroids evenly between the least and the greatest; these train on,
dc_j = Σ_{code_uv = j} dw_uv. The file holds which edges live as distances between them, and
distances and codes are coded after Huffman (Han, Mao, Dally, sections 2 to 4).

With entries e = live edges + fillers (`relative_indices`): a count of 32 bits, a table and a code
each for e distances and e codes, and 32 bits for every centroid in use. A filler's code is one
more symbol, the weight 0.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.bitstream import number_bits
from wiring.graph.codebook import ScalarCodebook, ScalarOptions, written_out
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS
from wiring.graph.huffman import (
    Bits,
    Ints,
    absolute_places,
    coded_bits,
    from_bits,
    read_symbols,
    relative_indices,
    to_bits,
    write_symbols,
)

COUNT_BITS = 32


class Options(ScalarOptions):
    """`bits` is by default what the paper takes: 8 for windows of pixels, 5 for 1x1 and fully
    connected layers. `gap_bits`: distances between live edges are coded up to 2^gap_bits; a
    longer one takes fillers."""

    gap_bits: Annotated[int, Field(ge=1, le=16)] = 5


class StoredBits(NamedTuple):
    """Bits of distances and codes with their tables, and of the centroids in use."""

    positions: int
    codes: int
    centroids: int


@EDGE_OPS.register("deep-compression")
class DeepCompression(ScalarCodebook):
    """Prune, share weights, code with Huffman: the smallest file of a sparse network."""

    paper = "Han, Mao, Dally: Deep Compression, ICLR 2016"
    use = (
        "For the smallest file, behind a rule that leaves few edges (fine-tune, surgery); the "
        "network is as fast as any of the same live edges. Take vq where many edges live."
    )
    Options: ClassVar[type[Config]] = Options
    cost_of_part: ClassVar[bool] = True
    bits_by_edges: ClassVar[bool] = False

    def default_bits(self) -> int:
        return 5 if math.prod(self.shape[2:]) == 1 else 8

    def cost(self, live: Tensor, positions: int) -> Cost:
        """32 bits per live edge, then what the very stream takes: 32 + (distances and codes after
        Huffman, with their tables) + 32·(centroids in use), no index bits beside it. Weights are
        written out when a file is read: a product and an addition per live edge and position."""
        return super().cost(live, positions)

    def codebook_cost(self, live: Tensor, positions: int) -> Cost:
        return written_out(int(live.sum()), positions, COUNT_BITS + sum(self.stored_bits(live)))

    def stored_bits(self, live: Tensor) -> StoredBits:
        """What each part of the file takes in stage 1."""
        gaps, codes = self._entries(live)
        counts = self._counts(codes)
        return StoredBits(
            coded_bits(np.bincount(gaps, minlength=1 << self.options.gap_bits)),
            coded_bits(counts),
            WEIGHT_BITS * int(np.count_nonzero(counts[:-1])),
        )

    def fixed_bits(self, live: Tensor) -> int:
        """What the file would take without Huffman's codes: distances and codes of fixed width,
        and every centroid."""
        width = int(self.options.gap_bits) + number_bits(self.count)
        return len(self._entries(live)[0]) * width + WEIGHT_BITS * self.count

    def _entries(self, live: Tensor) -> tuple[Ints, Ints]:
        """(distance less 1, code) of each live edge and filler, int64 [e]."""
        flat = live.flatten().cpu().numpy()
        gaps, real = relative_indices(np.flatnonzero(flat), self.options.gap_bits)
        codes = np.full(len(gaps), self.count, dtype=np.int64)
        codes[real] = self.codes.flatten().cpu().numpy()[flat]
        return gaps, codes

    def _counts(self, codes: Ints) -> Ints:
        """How often each centroid occurs, and the filler behind them."""
        return np.bincount(codes, minlength=self.count + 1)

    def pack_codebook(self, live: Tensor) -> dict[str, Tensor]:
        """`stream`: uint8, the count of entries, distances, codes; `centroids`: float32, those in
        use, ascending by code."""
        gaps, codes = self._entries(live)
        stream = np.concatenate(
            [
                to_bits(np.array([len(gaps)]), COUNT_BITS),
                write_symbols(gaps, 1 << self.options.gap_bits),
                write_symbols(codes, self.count + 1),
            ]
        )
        used = torch.from_numpy(np.flatnonzero(self._counts(codes)[:-1]))
        centroids = self.centroids.detach()[used.to(self.centroids.device)]
        return {
            "stream": torch.from_numpy(np.packbits(stream, bitorder="little")),
            "centroids": centroids.to(torch.float32),
        }

    def unpack_codebook(self, stored: dict[str, Tensor], live: Tensor) -> None:
        places, codes = self._read(stored)
        real = codes < self.count
        if not np.array_equal(places[real], np.flatnonzero(live.flatten().cpu().numpy())):
            raise ValueError("the live edges are others than those of the stream")
        flat = torch.zeros(self.shape.numel(), dtype=torch.int64)
        flat[torch.from_numpy(places[real])] = torch.from_numpy(codes[real])
        self.codes.copy_(flat.view(self.shape))
        used = torch.from_numpy(np.flatnonzero(self._counts(codes)[:-1]))
        self.centroids.zero_()
        self.centroids[used.to(self.centroids.device)] = stored["centroids"].to(self.centroids)

    def _read(self, stored: dict[str, Tensor]) -> tuple[Ints, Ints]:
        """(place, code) of every entry of a stream. Raises ValueError for one that is damaged."""
        packed = stored["stream"].cpu().numpy()
        bits: Bits = np.unpackbits(packed, bitorder="little").astype(bool)
        if len(bits) < COUNT_BITS:
            raise ValueError("a stream of weights ends inside its count")
        entries = int(from_bits(bits[:COUNT_BITS], COUNT_BITS)[0])
        if entries > self.shape.numel():
            raise ValueError(f"a stream of {entries} weights is for {self.shape.numel()} edges")
        gaps, place = read_symbols(bits, COUNT_BITS, 1 << self.options.gap_bits, entries)
        codes, _ = read_symbols(bits, place, self.count + 1, entries)
        places = absolute_places(gaps)
        if entries and places[-1] >= self.shape.numel():
            raise ValueError(f"a stream leads beyond the {self.shape.numel()} edges of its layer")
        return places, codes

    def holds_codebook(self, stored: dict[str, Tensor]) -> bool:
        return "stream" in stored

    def stores_live(self, live: Tensor) -> bool:
        """In stage 1; and of no edges nothing is stored, which says it."""
        return self.stage > 0 or not bool(live.any())

    def unpack_live(self, stored: dict[str, Tensor]) -> Tensor | None:
        if stored and not self.holds_codebook(stored):
            return None
        live = torch.zeros(self.shape.numel(), dtype=torch.bool)
        if stored:
            places, codes = self._read(stored)
            live[torch.from_numpy(places[codes < self.count])] = True
        return live.view(self.shape)
