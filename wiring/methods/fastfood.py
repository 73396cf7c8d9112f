"""y = S H G Π H B x / n: diagonals S, G, B are learned, H is the Walsh-Hadamard transform.

Every factor is linear, and so is each gradient by the same transforms: H is symmetric, Πᵀ is the
inverse permutation (Yang, Moczulski, Denil, de Freitas, Smola, Song, Wang: Deep Fried Convnets,
ICCV 2015). The window of an output pixel, S·kh·kw values, is filled up with zeros to n = 2^p;
⌈D/n⌉ blocks, each with its own diagonals and permutation, stand above one another, and what is more
than D of the last one is cut off. H/√n is orthonormal: with S = G = B = 1 and Π = I the map is the
identity, H H = n I.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor, nn

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, Seen
from wiring.graph.structured import StructuredOp
from wiring.graph.transforms import power_of_two, walsh_hadamard, walsh_hadamard_cost


class FastfoodOptions(Config):
    """`seed` draws the permutations; they are not stored."""

    seed: NonNegativeInt = 0


@EDGE_OPS.register("fastfood")
class Fastfood(StructuredOp):
    """Weights of three learned diagonals between Walsh-Hadamard transforms."""

    paper = "Yang et al.: Deep Fried Convnets, ICCV 2015 (adaptive Fastfood)"
    use = (
        "Wide layers that are all connected: 2n + D parameters instead of n·D, and no "
        "multiplications in the transforms. Take circulant where a trained layer is to be taken "
        "over, which it does in closed form, dense where layers are narrow."
    )
    Options = FastfoodOptions
    options: FastfoodOptions
    permutation: Tensor

    def make_parameters(self) -> None:
        destinations = self.shape[0]
        self.size = power_of_two(self.window)
        self.blocks = -(-destinations // self.size)
        self.scale = nn.Parameter(torch.empty(destinations))
        self.gauss = nn.Parameter(torch.empty(self.blocks, self.size))
        self.signs = nn.Parameter(torch.empty(self.blocks, self.size))
        generator = torch.Generator().manual_seed(self.options.seed)
        orders = [torch.randperm(self.size, generator=generator) for _ in range(self.blocks)]
        self.register_buffer("permutation", torch.stack(orders), persistent=False)

    def reset_parameters(self, fan_in: int) -> None:
        """B random signs, G standard normal, S constant: Fastfood's random start, scaled."""
        self._draw(None, math.sqrt(self.size / (3 * fan_in)))

    @torch.no_grad()
    def _draw(self, generator: torch.Generator | None, scale: float) -> None:
        self.signs.copy_(torch.randint(0, 2, self.signs.shape, generator=generator) * 2 - 1)
        self.gauss.copy_(torch.randn(self.gauss.shape, generator=generator))
        self.scale.fill_(scale)

    def transform(self, rows: Tensor) -> Tensor:
        size = self.size
        x = F.pad(rows, (0, size - self.window)).unsqueeze(-2) * self.signs
        x = walsh_hadamard(x)
        x = x.gather(-1, self.permutation.expand(x.shape))
        y = walsh_hadamard(x * self.gauss).flatten(-2)[..., : self.shape[0]]
        return y * (self.scale / size)

    def whole_cost(self, positions: int) -> Cost:
        """Per position and block of n = 2^p values: 2 Walsh-Hadamard transforms of n p additions,
        and 2n multiplications with B and G; D multiplications with S."""
        n, blocks = self.size, self.blocks
        block = walsh_hadamard_cost(n).repeated(2) + Cost(2 * n)
        each = block.repeated(blocks) + Cost(self.shape[0])
        return each.repeated(positions) + Cost(weight_bits=self.parameter_bits())

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """A near one: at most 100 steps of L-BFGS on ‖W - W(θ)‖², from a start drawn by `seed`;
        `residual` says how near. The problem is not convex, and the nearest may be elsewhere."""
        generator = torch.Generator().manual_seed(self.options.seed)
        spread = weight.square().mean().sqrt().item() * math.sqrt(self.size)
        self._draw(generator, spread)
        self.fit(weight)
