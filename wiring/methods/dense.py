"""y_v = Σ_u w_uv x_u over live edges; dw_uv = ⟨x_u, dy_v⟩; dx_u = Σ_live w_uv dy_v."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, mask_weight


@EDGE_OPS.register("dense")
class Dense(EdgeOp):
    """Multiply and add in floating point: the ordinary convolution."""

    paper = "Fukushima 1980; LeCun et al. 1989"

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight = mask_weight(self.weight, live, learn)
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)

    def cost(self, live: Tensor, positions: int) -> Cost:
        edges = int(live.sum())
        return Cost(
            multiplications=edges * positions,
            additions=edges * positions,
            weight_bits=edges * WEIGHT_BITS,
        )
