"""Codebooks of vectors: the weights of a row lie in blocks, each block has centroids of its own.

With W [m, n] (a row for each destination, n = S·kh·kw), its columns in s contiguous blocks b, and t
terms:

    W[v, b] = Σ_t C_tb[code_tb(v)],    dC_tb[j] = Σ_{v: code_tb(v) = j} dW[v, b].

Term t is fitted to what the terms before it leave. All codebooks side by side are [t, k, n].

In evaluation no row need be written out: for an input x a table Σ_{u in b} C_tb[j, u] x_u of
all centroids, t·k·n products, then t·m·s look-ups. That works where in every block a row has all
of its edges that any row has, or none.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.bitstream import BitReader, number_bits, pack_numbers
from wiring.graph.clustering import vector_centroids
from wiring.graph.codebook import Centroids, CodebookOp, CodebookOptions, code_type, written_out
from wiring.graph.edges import WEIGHT_BITS, Epilogue, Kernel


class VectorOptions(CodebookOptions):
    """`centroids` of each codebook; no more than a layer has rows are made."""

    centroids: Centroids = 32


class VectorCodebook(CodebookOp):
    """Codebooks of vectors over blocks of a row. Subclasses say how many terms and blocks."""

    Options: ClassVar[type[Config]] = VectorOptions
    cost_of_part: ClassVar[bool] = True
    codes: Tensor
    block: Tensor

    @property
    def terms(self) -> int:
        """How many centroids add up to a block of weights, t."""
        return 1

    @abstractmethod
    def divide(self, width: int) -> Tensor:
        """The block of each of `width` columns, int64, ascending."""

    @property
    def count(self) -> int:
        """The centroids of a codebook, k."""
        return int(min(self.options.centroids, self.shape[0]))

    def make_codebook(self) -> None:
        rows, width, k = self.shape[0], self.shape[1:].numel(), self.count
        # Codes and blocks are kept by column: so nodes can be cut out of them.
        self.codebooks = nn.Parameter(torch.zeros(self.terms, k, width))
        self.register_buffer("codes", torch.zeros(self.terms, rows, width, dtype=code_type(k)))
        self.register_buffer("block", self.divide(width).to(torch.int32))

    def fit(self, live: Tensor) -> None:
        mask = live.flatten(1)
        left = torch.where(mask, self.weight.detach().flatten(1), 0.0)
        for term in range(self.terms):
            for columns in self.columns_by_length(torch.ones_like(mask[0])):
                points, alive = (t[:, columns].transpose(0, 1) for t in (left, mask))
                found, chosen = vector_centroids(
                    points, alive, self.count, seed=self.options.seed + term
                )
                self.codebooks[term][:, columns] = found.transpose(0, 1)
                chosen = chosen.T[:, :, None].expand(-1, -1, columns.shape[1])
                self.codes[term][:, columns] = chosen.to(self.codes)
            fitted = self.codebooks[term].gather(0, self.codes[term].long())
            left = torch.where(mask, left - fitted, 0.0)

    def columns_by_length(self, wanted: Tensor) -> list[Tensor]:
        """The `wanted` columns, bool [n], of the blocks, those of equal length together: int64
        [blocks, length]."""
        columns = wanted.nonzero().flatten()
        sizes = torch.unique_consecutive(self.block[columns], return_counts=True)[1]
        blocks = torch.split(columns, sizes.tolist())
        groups: dict[int, list[Tensor]] = {}
        for one in blocks:
            groups.setdefault(len(one), []).append(one)
        return [torch.stack(group) for group in groups.values()]

    def decode(self) -> Tensor:
        return self.codebooks.gather(1, self.codes.long()).sum(dim=0).view(self.shape)

    def _pieces(self, live: Tensor) -> tuple[Tensor, Tensor]:
        """(bool [n]: columns with a live edge; bool [m, s]: rows that have one in each block)."""
        mask = live.flatten(1)
        columns = mask.any(dim=0)
        place = self._places(columns)
        pieces = mask.new_zeros((len(mask), int(place[-1]) + 1), dtype=torch.int64)
        pieces.index_add_(1, place, mask[:, columns].long())
        return columns, pieces > 0

    def _whole(self, live: Tensor) -> bool:
        """Whether every row has all or nothing of each block, so that tables serve it."""
        columns, pieces = self._pieces(live)
        return bool((live.flatten(1)[:, columns] == pieces[:, self._places(columns)]).all())

    def _places(self, columns: Tensor) -> Tensor:
        """The number, from 0, of the block of each of some columns, bool [n]."""
        return self._starts(self.block, columns).cumsum(0) - 1

    @staticmethod
    def _starts(block: Tensor, columns: Tensor) -> Tensor:
        """Bool: which of some columns, bool [n], begin a block."""
        ids = block[columns]
        return torch.cat([torch.ones_like(ids[:1], dtype=torch.bool), ids[1:] != ids[:-1]])

    def _starts_to_store(self, columns: Tensor) -> Tensor | None:
        """Where blocks begin, where nodes have been cut so that they begin elsewhere than in a
        new operator."""
        starts = self._starts(self.block, columns)
        usual = self._starts(self.divide(len(columns)).to(columns.device), columns)
        return None if torch.equal(starts, usual) else starts

    def codebook_cost(self, live: Tensor, positions: int) -> Cost:
        """t·(m·s·⌈log2 k⌉ + 32·k·n) bits, and those of `starts` where they are stored; of tables
        and weights written out the form of less energy."""
        edges, k = int(live.sum()), self.count
        columns, pieces = self._pieces(live)
        width, looked_up = int(columns.sum()), self.terms * int(pieces.sum())
        bits = looked_up * number_bits(k) + self.terms * k * width * WEIGHT_BITS
        if self._starts_to_store(columns) is not None:
            bits += 8 * -(-width // 8)
        plain = written_out(edges, positions, bits)
        if not self._whole(live):
            return plain
        products = self.terms * k * width * positions
        lookups = looked_up * positions
        tables = Cost(products, products + lookups, lookups=lookups, weight_bits=bits)
        return min(plain, tables, key=lambda cost: cost.energy)

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """With the weights written out; or by tables, where live edges come in whole blocks."""
        found = super().candidates(live, epilogue)
        if self.stage and live.any() and self._whole(live):
            found["tables"] = epilogue.after(Tables(self, live), fresh=True)
        return found

    def pack_codebook(self, live: Tensor) -> dict[str, Tensor]:
        """`codes`: ⌈log2 k⌉ bits for each term, row and block with a live edge, uint8;
        `codebooks`: float32 [t, k, columns with a live edge]; `starts`: a bit for each of those
        columns, uint8, where blocks do not begin where they do in a new operator."""
        columns, pieces = self._pieces(live)
        starts = self._starts(self.block, columns)
        codes = self.codes[:, :, columns][:, :, starts][:, pieces]
        stored = {
            "codes": pack_numbers([(codes, number_bits(self.count))]),
            "codebooks": self.codebooks.detach()[:, :, columns].to(torch.float32),
        }
        if self._starts_to_store(columns) is not None:
            stored["starts"] = pack_numbers([(starts, 1)])
        return stored

    def unpack_codebook(self, stored: dict[str, Tensor], live: Tensor) -> None:
        columns = live.flatten(1).any(dim=0)
        if "starts" in stored:
            starts = BitReader(stored["starts"]).take(int(columns.sum()), 1)
            self.block[columns] = (starts.cumsum(0) - 1).to(self.block)
        columns, pieces = self._pieces(live)
        read = BitReader(stored["codes"]).take(
            self.terms * int(pieces.sum()), number_bits(self.count)
        )
        coded = read.new_zeros(self.terms, *pieces.shape)
        coded[:, pieces.cpu()] = read.view(self.terms, -1)
        self.codes.zero_()
        self.codes[:, :, columns] = coded.to(self.codes)[:, :, self._places(columns)]
        self.codebooks.zero_()
        self.codebooks[:, :, columns] = stored["codebooks"].to(self.codebooks)

    def holds_codebook(self, stored: dict[str, Tensor]) -> bool:
        return "codebooks" in stored

    def restrict(self, destinations: Tensor, sources: Tensor) -> dict[str, Tensor]:
        """The columns of the sources that stay; of the centroids, where fewer rows remain than
        there were, those that these use."""
        state = self.state_dict()
        every = torch.arange(self.shape[1:].numel(), device=sources.device)
        columns = every.view(self.shape[1], -1)[sources].flatten()
        codes = state["codes"][:, destinations][:, :, columns]
        books = state["codebooks"][:, :, columns]
        k = min(self.count, len(destinations))
        if k < self.count:
            codes, books = _renumber(codes, books, k)
        return {
            **state,
            "weight": state["weight"][destinations][:, sources],
            "codes": codes.to(code_type(k)),
            "codebooks": books,
            "block": state["block"][columns],
        }


def _renumber(codes: Tensor, books: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Codes [t, m, n] and centroids [t, k, n] without those that no row uses: `count` of them,
    at least as many as are used."""
    places = codes.long()
    used = torch.zeros(books.shape, dtype=torch.int64, device=books.device)
    used.scatter_(1, places, 1)
    number = used.cumsum(1) - 1
    order = used.argsort(dim=1, descending=True, stable=True)[:, :count]
    return number.gather(1, places), books.gather(1, order)


class Tables:
    """The sums of a layer by tables: float [N, S, H, W] → [N, D, H', W']."""

    def __init__(self, op: VectorCodebook, live: Tensor) -> None:
        self.kernel = (op.shape[2], op.shape[3])
        self.stride, self.padding = op.stride, op.padding
        self.rows = op.shape[0]
        books, codes = op.codebooks.detach(), op.codes.long()
        mask = live.flatten(1)
        self.groups: list[tuple[Tensor, Tensor, Tensor]] = []
        for columns in op.columns_by_length(mask.any(dim=0)):
            for term in range(op.terms):
                # A row without edges in a block looks up a centroid of zeros behind the others.
                book = F.pad(books[term][:, columns].transpose(0, 1), (0, 0, 0, 1)).contiguous()
                first = columns[:, 0]
                code = torch.where(mask[:, first], codes[term][:, first], op.count)
                self.groups.append((columns, book, code.T.contiguous()))

    def __call__(self, x: Tensor) -> Tensor:
        height, width = (
            (side + 2 * self.padding - k) // self.stride + 1
            for side, k in zip(x.shape[2:], self.kernel, strict=True)
        )
        seen = F.unfold(x, self.kernel, padding=self.padding, stride=self.stride)
        y = x.new_zeros(len(x), self.rows, height * width)
        for columns, books, codes in self.groups:
            read = seen[:, columns.flatten()].view(len(x), *columns.shape, -1)
            tables = books.to(x.dtype) @ read
            for block, code in enumerate(codes):
                y += tables[:, block].index_select(1, code)
        return y.view(len(x), self.rows, height, width)
