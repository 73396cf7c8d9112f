"""φ_i(x) = Σ_{h(j)=i} ξ(j)·x_j: every source goes to one destination, with a random sign.

h(j) = xxh32(j; seed) mod D and ξ(j) = ±1 by a second xxh32, j the place of a source and a kernel's
pixel in a row. ⟨φ(x), φ(y)⟩ has the mean ⟨x, y⟩ over seeds and the variance
(1/D)·Σ_{j≠k} (x_j² y_k² + x_j y_j x_k y_k) (Weinberger et al., ICML 2009, lemma 2).
dx_j = ξ(j)·dφ_{h(j)}; nothing is learned and nothing stored.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from wiring.config import Config
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.edges import EDGE_OPS
from wiring.graph.tied import TiedOp
from wiring.kernels.xxhash32 import coin, xxh32


class FeatureHashOptions(Config):
    """`seed`: of both hashes, 0..2³²-1; give layers of the same width different ones."""

    seed: int = Field(default=0, ge=0, lt=2**32)


@EDGE_OPS.register("feature-hash")
class FeatureHash(TiedOp):
    """A fixed random projection that adds every source, with a sign, to one destination."""

    paper = (
        "Weinberger, Dasgupta, Langford, Smola, Attenberg: Feature Hashing for Large Scale "
        "Multitask Learning, ICML 2009"
    )
    use = (
        "As a first layer that folds many sparse inputs into few, at an addition each and without "
        "weights. It learns nothing: take hashed or low-rank where the projection should."
    )
    Options: ClassVar[type[Config]] = FeatureHashOptions
    fixed: ClassVar[bool] = True
    row: Tensor
    sign: Tensor

    def make_parameters(self) -> None:
        """No parameter; `row` int64 and `sign` float, both [S·kh·kw], follow from the seed."""
        j = torch.arange(self.shape[1:].numel())
        row = xxh32((j,), self.options.seed) % self.shape[0]
        self.register_buffer("row", row, persistent=False)
        self.register_buffer("sign", 1.0 - 2.0 * coin((j,), self.options.seed), persistent=False)

    def reset_parameters(self, fan_in: int) -> None:
        """Nothing: the signs are the method's, and inner products keep their mean by them."""

    def expand(self) -> Tensor:
        weight = self.sign.new_zeros(self.shape[0], len(self.row))
        return weight.scatter_(0, self.row[None], self.sign[None]).view(self.shape)

    def whole(self, x: Tensor) -> Tensor:
        """Additions alone: what each source and pixel of a kernel sees goes to its destination."""
        kernel = (self.shape[2], self.shape[3])
        height, width = (
            (side + 2 * self.padding - size) // self.stride + 1
            for side, size in zip(x.shape[2:], kernel, strict=True)
        )
        columns = F.unfold(x, kernel, padding=self.padding, stride=self.stride)
        signed = columns * self.sign.to(x.dtype).view(1, -1, 1)
        y = x.new_zeros(len(x), self.shape[0], columns.shape[2])
        return y.index_add(1, self.row, signed).view(len(x), -1, height, width)

    def approximate(self, weight: Tensor, seen: object = None) -> None:
        """Raises WiringError: a projection given by a seed takes over nobody's weights."""
        raise WiringError("feature-hash is fixed by its seed and takes over no trained weights")

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For P positions: an addition per source, pixel of the kernel and position whose one edge
        lives, at most S·kh·kw·P; no multiplication, no bits."""
        taken = live.view(len(live), -1).gather(0, self.row[None].to(live.device))
        return Cost(additions=int(taken.sum()) * positions)

    def whole_cost(self, positions: int) -> Cost:
        return Cost(additions=len(self.row) * positions)
