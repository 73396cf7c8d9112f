"""y_v = α_v Σ_live sign(w_uv) x_u, α_v = mean |w| over live edges; real inputs, one-bit weights.

dx_u = Σ_live α_v sign(w_uv) dy_v; dw by one of three formulas, see `binary_gradient`.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.cost import Cost
from wiring.graph.binary import BinaryWeights, binary_weight
from wiring.graph.edges import EDGE_OPS, Epilogue, Kernel, one_at_a_time
from wiring.kernels.masked_conv2d import PreparedMasked
from wiring.kernels.xnor_conv2d import PreparedBwn


@EDGE_OPS.register("bwn")
class BinaryWeightNetwork(BinaryWeights):
    """One-bit weights with one scale per destination; inputs stay real."""

    paper = "Rastegari et al.: XNOR-Net, ECCV 2016 (Binary-Weight-Networks)"

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight = binary_weight(self.weight, live, learn, self.options.weight_gradient)
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """The weight as bits and scales; unpacked once; or the live edges alone, unpacked."""
        words, mask, alpha, channels = self.packed_weight(live, [live.shape[1]])
        steps = {"stride": self.stride, "padding": self.padding}
        alpha = epilogue.scaled(alpha)
        weight = epilogue.scaled(binary_weight(self.weight, live, live, "exact"))
        shift, relu = epilogue.shift, epilogue.relu
        convolve = partial(F.conv2d, weight=weight, bias=shift, **steps)
        sparse = PreparedMasked(weight, live, shift=shift, relu=relu, **steps)
        packed = PreparedBwn(words, mask, alpha, channels, **steps)
        return {
            "packed": epilogue.unscaled().after(packed, fresh=True),
            "conv": Epilogue(relu=relu).after(convolve, fresh=True),
            "sparse": one_at_a_time(sparse),
        }

    def cost(self, live: Tensor, positions: int) -> Cost:
        return Cost(
            multiplications=self.rows(live) * positions,
            additions=int(live.sum()) * positions,
            weight_bits=self.weight_bits(live),
        )
