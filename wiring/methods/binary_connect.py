"""y_v = H Σ_live b_uv x_u, b = sign(w); in training with `stochastic` b = +1 with probability
clip((w/H + 1)/2, 0, 1), drawn anew in every forward pass.

dx_u = H Σ_live b_uv dy_v, through the bits that were drawn; the gradient of H·b goes straight to
w, which is clipped to ±H after every step (Courbariaux, Bengio and David 2015, algorithm 1). The
step is scaled by 1/√(1.5/(fan in + fan out)), as in the released code; here the gradient is,
which for SGD is the same. There is no α: the norm behind takes its place.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.binary import UnitOptions, UnitWeights
from wiring.graph.edges import EDGE_OPS, Epilogue, Kernel
from wiring.graph.surrogates import sign, straight


class BinaryConnectOptions(UnitOptions):
    """`h`: the magnitude H of every weight. `stochastic`: draw the bits in training, which
    regularises as dropout does; evaluation always takes the signs."""

    h: PositiveFloat = 1.0
    stochastic: bool = False


@EDGE_OPS.register("binary-connect")
class BinaryConnect(UnitWeights):
    """One-bit weights ±H without a scale, deterministic or drawn; inputs stay real."""

    paper = "Courbariaux et al.: BinaryConnect, NeurIPS 2015"
    use = (
        "Take it for the smallest real-input layers: a weight is one bit and nothing else, and "
        "`stochastic` regularises small data sets. Where no norm may follow, take bwn, which has "
        "a scale for each destination."
    )
    Options: ClassVar[type[Config]] = BinaryConnectOptions

    @property
    def size(self) -> float:
        """H."""
        return float(self.options.h)

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight = straight(self.weight, self.size * self.bits(), live, learn)
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def bits(self) -> Tensor:
        """±1 [D, S, kh, kw]: the signs, or drawn in training where the options say so."""
        if not (self.training and self.options.stochastic):
            return sign(self.weight)
        positive = ((self.weight / self.size + 1) / 2).clamp(0, 1)
        return torch.bernoulli(positive).mul_(2).sub_(1)

    @torch.no_grad()
    def effective_weight(self, live: Tensor) -> Tensor:
        """H·sign(w) of the live edges."""
        return torch.where(live, self.size * sign(self.weight), 0.0)

    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """See `BinaryWeights.signed_sums`."""
        return self.signed_sums(live, epilogue)

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For E live edges in R rows at P positions: E·P additions, and where H is not 1 R·P
        multiplications; E bits."""
        return Cost(
            multiplications=0 if self.size == 1 else self.rows(live) * positions,
            additions=int(live.sum()) * positions,
            weight_bits=self.weight_bits(live),
        )
