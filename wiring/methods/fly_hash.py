"""y = WTA(P x): P sparse and binary, WTA keeps the largest sums of a pixel and silences the rest.

Each of D destinations samples ⌈sample·n⌉ of its n = S·kh·kw places: those whose xxh32(d, j; seed)
is smallest. Of the sums of a pixel, those as large as the ⌈winners·D⌉-th largest keep their value,
the others become 0; equal sums win together. dx = Pᵀ(dy where the destination won); nothing is
learned and nothing stored (Dasgupta, Stevens, Navlakha, Science 2017: 10 % sampled, 5 % winners).

As a hash: the tag of x is the set of its winners, and near inputs share many of them (`FlyTags`).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from wiring.config import Config
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.edges import EDGE_OPS, EdgeOp
from wiring.kernels.xxhash32 import xxh32


class FlyHashOptions(Config):
    """`sample`: the share of sources that a destination sums; `winners`: the share of destinations
    that keep their value; both in (0, 1]. `seed`: of the sampling, 0..2³²-1."""

    sample: float = Field(default=0.1, gt=0, le=1)
    winners: float = Field(default=0.05, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**32)


def sampled(destinations: int, places: int, sample: float, seed: int) -> Tensor:
    """Bool [destinations, places], ⌈sample·places⌉ of each row true."""
    i, j = torch.arange(destinations)[:, None], torch.arange(places)[None]
    chosen = xxh32((i, j), seed).argsort(dim=1, stable=True)[:, : math.ceil(sample * places)]
    return torch.zeros(destinations, places, dtype=torch.bool).scatter_(1, chosen, True)


def winners(sums: Tensor, count: int) -> Tensor:
    """Bool, the shape of `sums` [N, D, ...]: those as large as the `count`-th largest along D."""
    least = sums.detach().topk(count, dim=1).values[:, -1:]
    return sums >= least


@EDGE_OPS.register("fly-hash")
class FlyHash(EdgeOp):
    """A fixed sparse binary projection of which the largest sums alone survive."""

    paper = (
        "Dasgupta, Stevens, Navlakha: A Neural Algorithm for a Fundamental Computing Problem, "
        "Science 2017"
    )
    use = (
        "As a fixed first layer much wider than its input, or, as FlyTags, for finding near "
        "neighbours, where tags of few winners are cheaper to keep and compare than vectors. Where "
        "the projection should learn, take xnor or bwn."
    )
    Options: ClassVar[type[Config]] = FlyHashOptions
    fixed: ClassVar[bool] = True
    # A sum that another overtakes becomes 0.
    sensitive: ClassVar[bool] = True
    # Which destination wins depends on all of them: none can be cut out, and no weight be set.
    tied: ClassVar[bool] = True
    weight: Tensor  # type: ignore[assignment]

    def make_parameters(self) -> None:
        """No parameter; `weight` [D, S, kh, kw] of 0 and 1 follows from the seed."""
        options, places = self.options, self.shape[1:].numel()
        chosen = sampled(self.shape[0], places, options.sample, options.seed)
        weight = chosen.view(self.shape).to(torch.get_default_dtype())
        self.register_buffer("weight", weight, persistent=False)

    def reset_parameters(self, fan_in: int) -> None:
        """Nothing: the projection is the seed's."""

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight = (self.weight * live).to(x.dtype)
        sums = F.conv2d(x, weight, stride=self.stride, padding=self.padding)
        runs = live.flatten(1).any(dim=1)
        # A destination without live edges takes no part: its sum of 0 might be the largest. Where
        # fewer run than may win, some of them win all the same, and their sum is 0.
        standing = sums.masked_fill(~runs.view(1, -1, 1, 1), -math.inf)
        return sums * winners(standing, math.ceil(self.options.winners * len(runs)))

    def used_sources(self, live: Tensor) -> Tensor:
        """Every source that some destination samples: all take part in who wins."""
        return (self.weight != 0).any(dim=(0, 2, 3)).to(live.device) & live.any()

    def approximate(self, weight: Tensor, seen: object = None) -> None:
        """Raises WiringError: a projection given by a seed takes over nobody's weights."""
        raise WiringError("fly-hash is fixed by its seed and takes over no trained weights")

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For P positions: an addition per sampled live edge and position, ⌈sample·S·kh·kw⌉·D·P
        where all live; no multiplication, no bits. Comparisons are not counted."""
        edges = int((live & (self.weight != 0).to(live.device)).sum())
        return Cost(additions=edges * positions)

    def restrict(self, destinations: Tensor, sources: Tensor) -> dict[str, Tensor]:
        """Nothing, for all nodes only. Raises WiringError for fewer."""
        if (len(destinations), len(sources)) != tuple(self.shape[:2]):
            raise WiringError("fly-hash lets all its destinations compete: none can be cut out")
        return {}

    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """Nothing: the seed is among the options."""
        return {}

    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        """Nothing."""


class FlyTags:
    """Finds near neighbours by how many winners they share.

    features: numbers per item. length: winners per tag, the length of the hash. expansion:
    destinations per feature (the paper's is 10). What is added to all features of an item changes
    nothing, as every destination samples equally many: centring, as in the paper, is not needed.
    """

    def __init__(
        self,
        features: int,
        length: int,
        *,
        expansion: float = 10.0,
        sample: float = 0.1,
        seed: int = 0,
    ) -> None:
        destinations = round(expansion * features)
        if not 1 <= length <= destinations:
            raise WiringError(f"a tag has 1..{destinations} winners, got {length}")
        if not 0 < sample <= 1:
            raise WiringError(f"a destination samples a share in (0, 1], got {sample}")
        self.length = length
        self.projection = sampled(destinations, features, sample, seed)
        self._known = torch.zeros(0, destinations, dtype=torch.bool)

    def tags(self, items: Tensor) -> Tensor:
        """The winners of each item [N, features]: bool [N, destinations], `length` a row.

        Raises WiringError for items of another number of features.
        """
        if items.dim() != 2 or items.shape[1] != self.projection.shape[1]:
            wanted = self.projection.shape[1]
            raise WiringError(f"items are [N, {wanted}], got {list(items.shape)}")
        sums = items @ self.projection.to(items).T
        chosen = sums.argsort(dim=1, descending=True, stable=True)[:, : self.length]
        return torch.zeros_like(sums, dtype=torch.bool).scatter_(1, chosen, True)

    def add(self, items: Tensor) -> None:
        """Remember items [N, features]; they are numbered in the order in which they come."""
        self._known = torch.cat([self._known.to(items.device), self.tags(items)])

    def overlaps(self, queries: Tensor) -> Tensor:
        """How many winners each query [M, features] shares with each item; float [M, N]."""
        return self.tags(queries).float() @ self._known.float().T

    def nearest(self, queries: Tensor, count: int) -> Tensor:
        """Numbers of the `count` items that share most winners, best first, ties in the items'
        order; int64 [M, count]. Raises WiringError for more items than there are."""
        if not 1 <= count <= len(self._known):
            raise WiringError(f"{len(self._known)} items are known, {count} were asked for")
        order = self.overlaps(queries).argsort(dim=1, descending=True, stable=True)
        return order[:, :count]
