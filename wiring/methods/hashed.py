"""V_ij = ξ(i, j)·w[h(i, j)], h = xxh32(i, j; seed) mod K, ξ = ±1 by a second xxh32; y = V x.

i is the destination, j the place of the source and the kernel's pixel in its row, both as 32-bit
little-endian words. K = ⌈ratio·size⌉ weights are stored and nothing else: h and ξ follow from the
seed. dw_k = Σ_{h(i,j)=k} ξ(i, j)·dV_ij, dx = Vᵀ dy (Chen et al., ICML 2015, eq. 4-12).

With `index` recomputed V is never whole in memory: destinations are taken in blocks, hashed anew in
the forward and in the backward pass, and what is kept between the two is x and w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS
from wiring.graph.surrogates import convolution_gradients
from wiring.graph.tied import TiedOp
from wiring.kernels.xxhash32 import hashed_places

BLOCK = 2**18  # weights that are written out at once

# (first, last destination) → int32 [(last - first)·row]: k for +w_k, K + k for -w_k.
Places = Callable[[int, int], Tensor]


class HashedOptions(Config):
    """`ratio`: stored weights per edge, in (0, 1]. `seed`: of both hashes, 0..2³²-1. `index`:
    `kept` hashes once and keeps four bytes an edge in memory, never in a file; `recomputed` hashes
    in every pass and holds neither them nor the weights of all edges."""

    ratio: float = Field(default=1 / 8, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    index: Literal["kept", "recomputed"] = "kept"


def spread(values: Tensor, places: Tensor) -> Tensor:
    """The weights at those places, flat; differentiable in `values` [K]."""
    return torch.cat([values, -values]).index_select(0, places)


def gather(grad: Tensor, places: Tensor, weights: int) -> Tensor:
    """Σ ξ·grad over the edges of each of the K weights; the transpose of `spread`."""
    sums = grad.new_zeros(2 * weights).index_add_(0, places, grad.flatten())
    return sums[:weights] - sums[weights:]


def _blocks(shape: torch.Size) -> Iterator[tuple[int, int]]:
    rows = max(1, BLOCK // max(1, shape[1:].numel()))
    for first in range(0, shape[0], rows):
        yield first, min(first + rows, shape[0])


class _HashedConvolution(torch.autograd.Function):
    """The convolution with `spread(values, places)`, a block of destinations at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        places: Places,
        shape: torch.Size,
        steps: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.places, ctx.shape, ctx.steps = places, shape, steps
        y: Tensor | None = None
        for first, last in _blocks(shape):
            weight = spread(values, places(first, last)).view(-1, *shape[1:])
            part = F.conv2d(x, weight, stride=steps[0], padding=steps[1])
            if y is None:
                y = part.new_empty(len(x), shape[0], *part.shape[2:])
            y[:, first:last] = part
        assert y is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        shape, (stride, padding) = ctx.shape, ctx.steps
        to_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        to_values = torch.zeros_like(values) if ctx.needs_input_grad[1] else None
        for first, last in _blocks(shape):
            places = ctx.places(first, last)
            pull = grad[:, first:last].contiguous()
            weight = spread(values, places).view(-1, *shape[1:])
            wanted = (to_x is not None, to_values is not None)
            for_x, for_weight = convolution_gradients(pull, x, weight, stride, padding, wanted)
            if to_x is not None and for_x is not None:
                to_x += for_x
            if to_values is not None and for_weight is not None:
                to_values += gather(for_weight, places, len(values))
        return to_x, to_values, None, None, None


def hashed_conv2d(
    x: Tensor,
    values: Tensor,
    places: Places,
    shape: torch.Size,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """The convolution of x [N, S, H, W] with shared weights `values` [K]; [N, D, H', W'].

    `places` says which of them each edge of `shape` [D, S, kh, kw] takes, and is asked again in the
    backward pass. At most `BLOCK` weights, or one destination's, exist at a time.
    """
    y: Tensor = _HashedConvolution.apply(x, values, places, shape, (stride, padding))
    return y


@EDGE_OPS.register("hashed")
class Hashed(TiedOp):
    """Weights shared at random: a hash of an edge's position says which one it takes."""

    paper = (
        "Chen, Wilson, Tyree, Weinberger, Chen: Compressing Neural Networks with the Hashing "
        "Trick, ICML 2015"
    )
    use = (
        "For wide layers whose stored weights must shrink by a chosen factor, trained so from the "
        "start. It saves memory and no arithmetic; where a trained network is to be compressed, "
        "codebooks (vq, product-vq) lose less."
    )
    Options: ClassVar[type[Config]] = HashedOptions
    places: Tensor

    def make_parameters(self) -> None:
        self.values = nn.Parameter(torch.empty(math.ceil(self.options.ratio * self.shape.numel())))
        if self.options.index == "kept":
            kept = self.recomputed(0, self.shape[0])
            self.register_buffer("places", kept, persistent=False)

    def reset_parameters(self, fan_in: int) -> None:
        """Uniform as any weight: sharing and signs change no variance."""
        nn.init.uniform_(self.values, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def recomputed(self, first: int, last: int) -> Tensor:
        """The places of those destinations by their hash."""
        row, values = self.shape[1:].numel(), self.values.detach()
        places: Tensor = hashed_places(values, row, self.options.seed, first, last)
        return places

    def all_places(self) -> Tensor:
        """int32 [D·S·kh·kw]."""
        if self.options.index == "kept":
            return self.places
        return self.recomputed(0, self.shape[0])

    def expand(self) -> Tensor:
        return spread(self.values, self.all_places()).view(self.shape)

    def whole(self, x: Tensor) -> Tensor:
        if self.options.index == "kept":
            return super().whole(x)
        values = self.values.to(x.dtype)
        return hashed_conv2d(x, values, self.recomputed, self.shape, self.stride, self.padding)

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: object = None) -> None:
        """Least squares: the mean of ξ·W over the edges that share a weight, 0 where none does."""
        places, count = self.all_places(), len(self.values)
        sums = gather(weight.to(self.values.dtype), places, count)
        edges = torch.bincount(places % count, minlength=count)
        self.values.copy_(sums / edges.clamp(min=1))

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For E live edges at P positions: E·P multiplications and additions, E look-ups of shared
        weights; 32·K bits, K = ⌈ratio·size⌉, however many edges live. The integer arithmetic of the
        hashes is not counted."""
        edges = int(live.sum())
        if edges == 0:
            return Cost()
        products = edges * positions
        return Cost(products, products, lookups=edges, weight_bits=WEIGHT_BITS * len(self.values))

    def whole_cost(self, positions: int) -> Cost:
        return self.cost(torch.ones(self.shape, dtype=torch.bool), positions)
