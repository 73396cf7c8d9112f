"""y_v = Σ_u w_uv ⋆ x_u over live edges, computed as F⁻¹(Σ_u F(x_u) ⊙ conj F(w_uv)).

dx and dw by the same transforms, those of x and w reused (Mathieu, Henaff, LeCun: Fast Training of
Convolutional Networks through FFTs, ICLR 2014). Values and gradients are the ordinary convolution's
up to rounding; a dead edge is a weight of 0, and its gradient is masked as usual.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, Epilogue, Kernel, mask_weight
from wiring.graph.fast_convolutions import direct_forms, fft_forms
from wiring.graph.transforms import fourier_cost
from wiring.kernels.fft_conv2d import fast_size, fft_conv2d


@EDGE_OPS.register("fft")
class Fft(EdgeOp):
    """The ordinary convolution by Fourier transforms."""

    paper = (
        "Mathieu, Henaff, LeCun: Fast Training of Convolutional Networks through FFTs, ICLR 2014"
    )
    use = (
        "Training with kernels of about 11x11 and more, in batches, so that the filters' "
        "transforms pay; results are dense's. Take dense for smaller kernels, single images and "
        "strides (every position is computed): compiled, it takes Fourier transforms by itself "
        "where they are faster."
    )

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        return fft_conv2d(x, mask_weight(self.weight, live, learn), self.stride, self.padding)

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """Filters transformed once; or PyTorch's own convolution, which computes the same."""
        weight = epilogue.scaled(torch.where(live, self.weight, 0.0))
        steps = (self.stride, self.padding, epilogue)
        return {**fft_forms(weight, *steps), **direct_forms(weight, *steps)}

    def cost(self, live: Tensor, positions: int) -> Cost:
        """With m the sources and d the destinations that have live edges: m + d transforms of
        n x n values, n² log₂ n² multiplications and 3/2 n² log₂ n² additions each, and
        n (n/2 + 1) · m · d complex products, of 4 multiplications and 2 additions, each added up
        in 2 more. Outputs count as square, of √positions: n is the next fast size from
        stride · (√positions - 1) + k on. Filters are transformed once, for no image's cost."""
        edges = int(live.sum())
        if not edges:
            return Cost()
        side = math.ceil(math.sqrt(positions))
        down, right = (fast_size(self.stride * (side - 1) + k) for k in live.shape[2:])
        pairs = live.flatten(2).any(dim=2)
        sources, destinations = int(pairs.any(dim=0).sum()), int(pairs.any(dim=1).sum())
        products = down * (right // 2 + 1) * sources * destinations
        transforms = fourier_cost(down * right).repeated(sources + destinations)
        return transforms + Cost(4 * products, 4 * products, weight_bits=edges * WEIGHT_BITS)
