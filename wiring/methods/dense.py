"""y_v = Σ_u w_uv x_u over live edges; dw_uv = ⟨x_u, dy_v⟩; dx_u = Σ_live w_uv dy_v."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, Epilogue, Kernel, mask_weight


@EDGE_OPS.register("dense")
class Dense(EdgeOp):
    """Multiply and add in floating point: the ordinary convolution."""

    paper = "Fukushima 1980; LeCun et al. 1989"

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight = mask_weight(self.weight, live, learn)
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """The weight masked and scaled once, in both memory formats; the live edges alone."""
        weight = epilogue.scaled(torch.where(live, self.weight, 0.0))
        steps = {"bias": epilogue.shift, "stride": self.stride, "padding": self.padding}
        relu = Epilogue(relu=epilogue.relu)
        forms = {
            "conv": weight,
            "conv channels_last": weight.contiguous(memory_format=torch.channels_last),
        }
        return {
            name: relu.after(partial(F.conv2d, weight=rows, **steps), fresh=True)
            for name, rows in forms.items()
        }

    def cost(self, live: Tensor, positions: int) -> Cost:
        edges = int(live.sum())
        return Cost(
            multiplications=edges * positions,
            additions=edges * positions,
            weight_bits=edges * WEIGHT_BITS,
        )
