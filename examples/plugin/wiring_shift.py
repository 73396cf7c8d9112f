"""y_v = Σ_live sign(w_uv) 2^round(log2 |w_uv|) x_u: a multiplication becomes a shift."""

import torch.nn.functional as F
from torch import Tensor

from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, mask_weight


@EDGE_OPS.register("shift")
class Shift(EdgeOp):
    """Weights are rounded to powers of two; their gradient passes straight through."""

    paper = "Elhoushi et al.: DeepShift, CVPR Workshops 2021"

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        power = self.weight.abs().clamp(min=2.0**-15).log2().round().exp2() * self.weight.sign()
        weight = mask_weight(self.weight + (power - self.weight).detach(), live, learn)
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)

    def cost(self, live: Tensor, positions: int) -> Cost:
        edges = int(live.sum())
        return Cost(additions=edges * positions, weight_bits=edges * WEIGHT_BITS)
