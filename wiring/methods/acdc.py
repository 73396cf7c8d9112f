"""y = x · Π_l (A_l C D_l C⁻¹ P_l): learned diagonals A, D between orthonormal cosine transforms C.

A, C, D are linear with symmetric or orthonormal factors, so that gradients run through the same
transforms backwards (Moczulski, Denil, Appleyard, de Freitas: ACDC: A Structured Efficient Linear
Layer, ICLR 2016). All layers have n = max(S·kh·kw, D) values: the window of an output pixel is
filled up with zeros, what is more than D is cut off. P_l are fixed random permutations between
layers, none behind the last. Biases are the nodes' affair.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, Seen
from wiring.graph.structured import StructuredOp
from wiring.graph.transforms import cosine, cosine_cost, inverse_cosine


class AcdcOptions(Config):
    """`layers` in the cascade; `spread` is the standard deviation of first diagonals around 1;
    `seed` draws the permutations, which are not stored."""

    layers: PositiveInt = 4
    spread: NonNegativeFloat = 0.1
    seed: NonNegativeInt = 0


@EDGE_OPS.register("acdc")
class Acdc(StructuredOp):
    """Weights of a cascade of diagonals between cosine transforms.

    The cascade is linear. The paper's networks have a ReLU between ACDC layers: for those, chain
    bundles of `layers` 1, whose nodes bring norm, bias and ReLU.
    """

    paper = "Moczulski et al.: ACDC: A Structured Efficient Linear Layer, ICLR 2016"
    use = (
        "Wide layers that are all connected: 2n parameters a layer instead of n², and deeper "
        "cascades reach more maps. Take circulant for a closed-form conversion, dense where "
        "layers are narrow."
    )
    Options = AcdcOptions
    options: AcdcOptions
    permutation: Tensor

    def make_parameters(self) -> None:
        layers, self.size = self.options.layers, max(self.window, self.shape[0])
        self.a = nn.Parameter(torch.empty(layers, self.size))
        self.d = nn.Parameter(torch.empty(layers, self.size))
        generator = torch.Generator().manual_seed(self.options.seed)
        orders = [torch.randperm(self.size, generator=generator) for _ in range(layers - 1)]
        none = torch.empty(0, self.size, dtype=torch.int64)
        permutation = torch.stack(orders) if orders else none
        self.register_buffer("permutation", permutation, persistent=False)

    def reset_parameters(self, fan_in: int) -> None:
        """Normal around 1 as in the paper, then scaled: squared weights are 1 / (3 fan_in) on
        average over the n x n matrix, most of it on few of them where `spread` is small."""
        self._draw(None, math.sqrt(self.size / (3 * fan_in)))

    @torch.no_grad()
    def _draw(self, generator: torch.Generator | None, scale: float) -> None:
        spread = self.options.spread
        energy = (1 + spread**2) ** self.options.layers  # of a cascade, and of its square root
        for diagonal in (self.a, self.d):
            drawn = torch.randn(diagonal.shape, generator=generator)
            diagonal.copy_(1 + spread * drawn)
        self.d[-1] *= scale / energy

    def transform(self, rows: Tensor) -> Tensor:
        x = F.pad(rows, (0, self.size - self.window))
        for layer, (a, d) in enumerate(zip(self.a, self.d, strict=True)):
            if layer:
                x = x.index_select(-1, self.permutation[layer - 1])
            x = inverse_cosine(cosine(x * a) * d)
        return x[..., : self.shape[0]]

    def whole_cost(self, positions: int) -> Cost:
        """Per position and layer of n = max(S·kh·kw, D) values: 2 cosine transforms, n log₂ n + 2n
        multiplications and 3/2 n log₂ n + n additions each, and 2n multiplications with A and D."""
        n = self.size
        layer = cosine_cost(n).repeated(2) + Cost(2 * n)
        each = layer.repeated(self.options.layers)
        return each.repeated(positions) + Cost(weight_bits=self.parameter_bits())

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """A near one: at most 100 steps of L-BFGS on ‖W - W(θ)‖², from a start drawn by `seed`;
        `residual` says how near. The problem is not convex, and the nearest may be elsewhere."""
        generator = torch.Generator().manual_seed(self.options.seed)
        size = torch.linalg.vector_norm(weight).item()
        kept = math.sqrt(self.shape[0] * self.window / self.size)
        self._draw(generator, size / kept if size else 1.0)
        self.fit(weight)
