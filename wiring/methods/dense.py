"""y_v = Σ_u w_uv x_u over live edges; dw_uv = ⟨x_u, dy_v⟩; dx_u = Σ_live w_uv dy_v."""

from __future__ import annotations

import torch
from torch import Tensor

from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, Epilogue, Kernel, one_at_a_time
from wiring.graph.fast_convolutions import direct_forms, fast_forms
from wiring.kernels.masked_conv2d import PreparedMasked, masked_conv2d


@EDGE_OPS.register("dense")
class Dense(EdgeOp):
    """Multiply and add in floating point: the ordinary convolution."""

    paper = "Fukushima 1980; LeCun et al. 1989"
    use = (
        "The ordinary convolution: take it as the measure of all others, and where accuracy "
        "counts most. A rule makes it sparse; other operators make its edges cheaper."
    )

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        y: Tensor = masked_conv2d(x, self.weight, live, learn, self.stride, self.padding)
        return y

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """The live edges alone; or a weight masked once, by PyTorch's convolution in both memory
        formats, by Fourier transforms or by Winograd tiles where these may win."""
        weight = epilogue.scaled(torch.where(live, self.weight, 0.0))
        stride, padding = self.stride, self.padding
        sparse = PreparedMasked(
            weight, live, stride=stride, padding=padding, shift=epilogue.shift, relu=epilogue.relu
        )
        return {
            "sparse": one_at_a_time(sparse),
            **direct_forms(weight, stride, padding, epilogue),
            **fast_forms(weight, live, stride, padding, epilogue),
        }

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For E live edges at P positions: E·P multiplications and additions; 32·E bits."""
        edges = int(live.sum())
        return Cost(
            multiplications=edges * positions,
            additions=edges * positions,
            weight_bits=edges * WEIGHT_BITS,
        )
