"""y_v = α_v Σ_live sign(w_uv) x_u, α_v = mean |w| over live edges; real inputs, one-bit weights.

dx_u = Σ_live α_v sign(w_uv) dy_v; dw by one of three formulas, see `binary_gradient`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.cost import Cost
from wiring.graph.binary import BinaryWeights, binary_weight
from wiring.graph.edges import EDGE_OPS, Epilogue, Kernel


@EDGE_OPS.register("bwn")
class BinaryWeightNetwork(BinaryWeights):
    """One-bit weights with one scale per destination; inputs stay real."""

    paper = "Rastegari et al.: XNOR-Net, ECCV 2016 (Binary-Weight-Networks)"
    use = (
        "Take it to store weights in one bit at little loss: inputs stay real, products become "
        "additions. Where a trained network is to be binarised, bwnh finds better bits; where "
        "speed counts, xnor takes signs of the inputs too."
    )

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight = binary_weight(self.weight, live, learn, self.options.weight_gradient)
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def effective_weight(self, live: Tensor) -> Tensor:
        """α·sign(w) of the live edges."""
        return binary_weight(self.weight, live, live, self.options.weight_gradient)

    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """See `BinaryWeights.signed_sums`."""
        return self.signed_sums(live, epilogue)

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For E live edges in R rows at P positions: R·P multiplications, by the scales, and E·P
        additions; E + 32·R bits."""
        return Cost(
            multiplications=self.rows(live) * positions,
            additions=int(live.sum()) * positions,
            weight_bits=self.weight_bits(live),
        )
