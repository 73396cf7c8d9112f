"""Input and output channels in clusters; W between two clusters g, h of them is of low rank.

W_gh [f, c, kh·kw] ≈ `svd`: Σ_kl V_l ⊗ U_k · C_lk, K channels of the inputs (U) and of the outputs
(V) with a core C of K×K kernels between them; `outer`: Σ_k V_k ⊗ U_k ⊗ C_k, one kernel for each of
K outer products. Where kernels are 1×1 there is no core: W_gh ≈ Σ_k V_k ⊗ U_k.

y is three convolutions: 1×1 from each input cluster to K channels for each output cluster, k×k
within each pair of clusters, 1×1 to the output channels; gradients are theirs. With G and H
clusters of c = S/G and f = D/H channels, `svd` has G·H·(c·K + kh·kw·K² + K·f) parameters and
`outer` G·H·K·(c + kh·kw + f).

Clusters are found in a trained W by k-means on what belongs to one channel. All clusters of a kind
have the same number of channels, or one less: each round assigns them at the least total distance.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.balanced_clusters import balanced_clusters
from wiring.graph.bitstream import BitReader, number_bits, pack_numbers
from wiring.graph.block_factors import matrices, outer_products, tucker
from wiring.graph.edges import EDGE_OPS, Seen
from wiring.graph.ranks import largest_rank, one_size
from wiring.graph.tied import TiedOp

DEFAULT_SHARE = 0.5


class BiclusterOptions(Config):
    """`kind`: how a pair of clusters is approximated, `svd` (twice, by inputs and by outputs) or
    `outer` products. `input_clusters`, `output_clusters`: at most as many as there are channels.

    K: `rank` in every layer alike, at most as large as represents any weight; or as large as the
    share `parameters` of the dense layer's parameters pays for, at least 1. 0.5 where nothing is
    said.
    """

    kind: Literal["svd", "outer"] = "svd"
    input_clusters: PositiveInt = 2
    output_clusters: PositiveInt = 2
    rank: PositiveInt | None = None
    parameters: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        return one_size(self, "rank", "parameters")


@EDGE_OPS.register("bicluster")
class Bicluster(TiedOp):
    """Clusters of channels, and a low rank between each two of them."""

    paper = (
        "Denton et al.: Exploiting Linear Structure Within Convolutional Networks for Efficient "
        "Evaluation, NIPS 2014"
    )
    use = (
        "For trained layers whose channels fall into groups that do different things. Without such "
        "groups `low-rank` is as near for as many parameters, and simpler."
    )
    Options: ClassVar[type[Config]] = BiclusterOptions
    input_cluster: Tensor
    output_cluster: Tensor
    columns: Tensor
    rows: Tensor
    gather: Tensor
    inputs: int
    outputs: int
    pixels: int
    width: int
    height: int
    ranks: tuple[int, int]

    def make_parameters(self) -> None:
        """`reduce` [G·H·K, c, 1, 1], `core` [G·H·K, K or 1, kh, kw], `widen` [H·f, G·K, 1, 1]; the
        cluster of each channel int64 [S], [D], at first of neighbours."""
        destinations, sources, *kernel = self.shape
        self.inputs = min(self.options.input_clusters, sources)
        self.outputs = min(self.options.output_clusters, destinations)
        self.pixels = kernel[0] * kernel[1]
        self.width = -(-sources // self.inputs)
        self.height = -(-destinations // self.outputs)
        rank = self.options.rank
        if rank is None:
            limit = (self.options.parameters or DEFAULT_SHARE) * self.shape.numel()
            rank = largest_rank(self._count, limit, self._full)
        self.ranks = self._ranks(rank)
        pairs = self.inputs * self.outputs
        self.reduce = nn.Parameter(torch.empty(pairs * self.ranks[0], self.width, 1, 1))
        self.core: nn.Parameter | None = None
        if self.pixels > 1:
            inner = self.ranks[0] if self.options.kind == "svd" else 1
            self.core = nn.Parameter(torch.empty(pairs * self.ranks[1], inner, *kernel))
        shape = (self.outputs * self.height, self.inputs * self.ranks[1], 1, 1)
        self.widen = nn.Parameter(torch.empty(shape))
        for name, size, clusters in (
            ("input", sources, self.inputs),
            ("output", destinations, self.outputs),
        ):
            self.register_buffer(f"{name}_cluster", torch.arange(size) * clusters // size)
        for name, size in (
            ("columns", sources),
            ("rows", destinations),
            ("gather", self.inputs * self.width),
        ):
            self.register_buffer(name, torch.zeros(size, dtype=torch.long), persistent=False)
        self._arrange()

    @property
    def _full(self) -> int:
        """The K that represents any weight."""
        if self.pixels == 1:
            return min(self.width, self.height)
        if self.options.kind == "svd":
            return max(self.width, self.height)
        sides = sorted((self.width, self.height, self.pixels))
        return sides[0] * sides[1]

    def _ranks(self, rank: int) -> tuple[int, int]:
        """Channels of a pair of clusters before and behind its core."""
        rank = min(rank, self._full)
        if self.pixels > 1 and self.options.kind == "svd":
            return min(rank, self.width), min(rank, self.height)
        return rank, rank

    def _count(self, rank: int) -> int:
        """Parameters at this K."""
        before, after = self._ranks(rank)
        core = 0
        if self.pixels > 1:
            core = after * self.pixels * (before if self.options.kind == "svd" else 1)
        pairs = self.inputs * self.outputs
        return pairs * (self.width * before + core + after * self.height)

    def _arrange(self) -> None:
        """Say where clusters put the channels: cluster by cluster, in their own order inside.

        `columns` [S] and `rows` [D] are places of channels; `gather` [G·c] the channel of a place,
        S for a place that stays empty.
        """
        for cluster, places, size in (
            (self.input_cluster, self.columns, self.width),
            (self.output_cluster, self.rows, self.height),
        ):
            order = cluster.argsort(stable=True)
            sorted_clusters = cluster[order]
            first = torch.searchsorted(sorted_clusters, sorted_clusters)
            inside = torch.arange(len(order), device=order.device) - first
            places[order] = sorted_clusters * size + inside
        self.gather.fill_(self.shape[1])
        self.gather[self.columns] = torch.arange(self.shape[1], device=self.gather.device)

    def reset_parameters(self, fan_in: int) -> None:
        """All factors uniform, of one variance."""
        parameters = list(self.parameters())
        terms = self.ranks[0]
        if self.core is not None and self.options.kind == "svd":
            terms *= self.ranks[1]
        variance = (1 / (3 * fan_in * terms)) ** (1 / len(parameters))
        for parameter in parameters:
            nn.init.uniform_(parameter, -((3 * variance) ** 0.5), (3 * variance) ** 0.5)

    def expand(self) -> Tensor:
        (before, after), g, h = self.ranks, self.inputs, self.outputs
        reduce = self.reduce.view(g, h, before, self.width)
        widen = self.widen.view(h, self.height, g, after)
        if self.core is None:
            blocks = torch.einsum("ghkc,hfgk->hfgc", reduce, widen)
        elif self.options.kind == "svd":
            core = self.core.view(g, h, after, before, self.pixels)
            blocks = torch.einsum("ghkc,ghlkp,hfgl->hfgcp", reduce, core, widen)
        else:
            core = self.core.view(g, h, before, self.pixels)
            blocks = torch.einsum("ghkc,ghkp,hfgk->hfgcp", reduce, core, widen)
        weight = blocks.reshape(h * self.height, g * self.width, *self.shape[2:])
        return weight[self.rows][:, self.columns]

    def whole(self, x: Tensor) -> Tensor:
        """Three convolutions in groups; the middle one has this bundle's stride and padding."""
        g, h = self.inputs, self.outputs
        reduce, widen = self.reduce.to(x.dtype), self.widen.to(x.dtype)
        if len(self.gather) > x.shape[1]:
            x = F.pad(x, (0, 0, 0, 0, 0, 1))
        x = x.index_select(1, self.gather)
        convolve = partial(F.conv2d, stride=self.stride, padding=self.padding)
        if self.core is None:
            z = convolve(x, reduce, groups=g)
        else:
            groups = g * h if self.options.kind == "svd" else len(self.core)
            z = convolve(F.conv2d(x, reduce, groups=g), self.core.to(x.dtype), groups=groups)
        z = z.view(len(z), g, h, self.ranks[1], *z.shape[2:]).transpose(1, 2).flatten(1, 3)
        return F.conv2d(z, widen, groups=h).index_select(1, self.rows)

    def parameter_bits(self) -> int:
        """32 a parameter, ⌈log₂ G⌉ for a source and ⌈log₂ H⌉ for a destination."""
        return super().parameter_bits() + sum(
            len(cluster) * bits for cluster, bits in self._clusters()
        )

    def _clusters(self) -> list[tuple[Tensor, int]]:
        """(cluster of each channel, bits that say which), of inputs and of outputs."""
        return [
            (self.input_cluster, number_bits(self.inputs)),
            (self.output_cluster, number_bits(self.outputs)),
        ]

    def whole_cost(self, positions: int) -> Cost:
        """One multiplication and one addition a parameter at each of P pixels; stride² as many
        for the first convolution, which runs on the input's pixels, unless kernels are 1x1. The
        clusters' numbers are stored too: ⌈log₂ G⌉ bits for a source, ⌈log₂ H⌉ for a destination.
        """
        wider = 1 if self.core is None else self.stride**2
        core = 0 if self.core is None else self.core.numel()
        products = (wider * self.reduce.numel() + core + self.widen.numel()) * positions
        return Cost(products, products, weight_bits=self.parameter_bits())

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """Clusters by k-means, then each pair of them by itself: the nearest of its rank where
        kernels are 1x1, by alternating least squares elsewhere."""
        weight = weight.double()
        self.input_cluster.copy_(balanced_clusters(weight.transpose(0, 1).flatten(1), self.inputs))
        self.output_cluster.copy_(balanced_clusters(weight.flatten(1), self.outputs))
        self._arrange()
        g, h = self.inputs, self.outputs
        placed = weight.new_zeros(h * self.height, g * self.width, self.pixels)
        placed[self.rows[:, None], self.columns] = weight.flatten(2)
        split = placed.view(h, self.height, g, self.width, self.pixels)
        blocks = split.permute(2, 0, 1, 3, 4).flatten(0, 1)
        if self.core is None:
            reduce, widen = matrices(blocks[..., 0], self.ranks[0])
        elif self.options.kind == "svd":
            reduce, core, widen = tucker(blocks, *self.ranks)
            self.core.copy_(core.reshape(self.core.shape))
        else:
            reduce, core, widen = outer_products(blocks, self.ranks[0])
            self.core.copy_(core.reshape(self.core.shape))
        self.reduce.copy_(reduce.reshape(self.reduce.shape))
        widen = widen.view(g, h, self.height, -1).permute(1, 2, 0, 3)
        self.widen.copy_(widen.reshape(self.widen.shape))

    def _load_from_state_dict(self, *state: Any, **named: Any) -> None:
        super()._load_from_state_dict(*state, **named)
        self._arrange()

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """Parameters in float32; `clusters`: those of sources, then of destinations, in as few bits
        as tell them apart, uint8."""
        stored = super().pack(live)
        if stored and self.inputs * self.outputs > 1:
            stored["clusters"] = pack_numbers(self._clusters()).to(live.device)
        return stored

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        super().unpack(stored, live)
        if "clusters" in stored:
            reader = BitReader(stored["clusters"])
            for cluster, bits in self._clusters():
                cluster.copy_(reader.take(len(cluster), bits))
            self._arrange()
