"""y_v = Σ_u w_uv x_u over live edges; dw_uv = ⟨x_u, dy_v⟩; dx_u = Σ_live w_uv dy_v."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, Epilogue, Kernel, one_at_a_time
from wiring.kernels.masked_conv2d import PreparedMasked, masked_conv2d


@EDGE_OPS.register("dense")
class Dense(EdgeOp):
    """Multiply and add in floating point: the ordinary convolution."""

    paper = "Fukushima 1980; LeCun et al. 1989"

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        y: Tensor = masked_conv2d(x, self.weight, live, learn, self.stride, self.padding)
        return y

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """The live edges alone; or a weight masked once, in both memory formats."""
        weight = epilogue.scaled(torch.where(live, self.weight, 0.0))
        shift, stride, padding = epilogue.shift, self.stride, self.padding
        last = weight.contiguous(memory_format=torch.channels_last)
        sparse = PreparedMasked(
            weight, live, stride=stride, padding=padding, shift=shift, relu=epilogue.relu
        )
        convolve = partial(F.conv2d, bias=shift, stride=stride, padding=padding)
        relu = Epilogue(relu=epilogue.relu)
        return {
            "sparse": one_at_a_time(sparse),
            "conv": relu.after(partial(convolve, weight=weight), fresh=True),
            "conv channels_last": relu.after(partial(convolve, weight=last), fresh=True),
        }

    def cost(self, live: Tensor, positions: int) -> Cost:
        edges = int(live.sum())
        return Cost(
            multiplications=edges * positions,
            additions=edges * positions,
            weight_bits=edges * WEIGHT_BITS,
        )
