"""y_v = Aᵀ [Σ_u (G w_uv Gᵀ) ⊙ (Bᵀ d_u B)] A over live edges, tile by tile.

dx by the same algorithm with turned filters, dw by the transposed one (Lavin, Gray: Fast Algorithms
for Convolutional Neural Networks, CVPR 2016). Values and gradients are the ordinary convolution's
up to rounding; a dead edge is a weight of 0, and its gradient is masked as usual.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, Epilogue, Kernel, mask_weight
from wiring.graph.fast_convolutions import direct_forms, winograd_forms
from wiring.kernels.masked_conv2d import masked_conv2d
from wiring.kernels.winograd_conv2d import winograd_conv2d

# (multiplications by constants, additions) of one transform of one side of a tile, with common
# sums shared, by tile: Lavin & Gray count 4 and 4 additions, and 12 and 10.
_IMAGE = {2: (0, 4), 4: (7, 12)}
_RESULT = {2: (0, 4), 4: (3, 10)}


class WinogradOptions(Config):
    """`tile`: results of a tile a side. 4 takes 36 multiplications for 16 results, 2 takes 16 for
    4 and rounds about 20 times less: 1e-6 of the largest result in float32 against 2e-5."""

    tile: Literal[2, 4] = 4


@EDGE_OPS.register("winograd")
class Winograd(EdgeOp):
    """The ordinary convolution by Winograd's minimal filtering.

    It is for kernels of 3x3 at stride 1. Bundles of other kernels or strides compute directly, as
    dense ones do, and their cost is dense's.
    """

    paper = "Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016"
    use = (
        "Training with 3x3 kernels at stride 1 and some 256 channels, in batches; results are "
        "dense's within 2e-5. Take dense for fewer channels and where many edges are dead, as "
        "tiles are computed whole: compiled, it takes tiles by itself where they are faster."
    )
    Options = WinogradOptions
    options: WinogradOptions

    @property
    def applies(self) -> bool:
        """Whether this bundle is computed in tiles."""
        return (*self.shape[2:], self.stride) == (3, 3, 1)

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        y: Tensor
        if not self.applies:
            y = masked_conv2d(x, self.weight, live, learn, self.stride, self.padding)
            return y
        weight = mask_weight(self.weight, live, learn)
        y = winograd_conv2d(x, weight, self.padding, self.options.tile)
        return y

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """Filters transformed once; or PyTorch's own convolution, which computes the same."""
        weight = epilogue.scaled(torch.where(live, self.weight, 0.0))
        forms = direct_forms(weight, self.stride, self.padding, epilogue)
        if self.applies:
            tiles = (self.options.tile,)
            forms |= winograd_forms(weight, self.padding, epilogue, tiles)
        return forms

    def cost(self, live: Tensor, positions: int) -> Cost:
        """With T = ⌈√positions / t⌉² tiles of t x t results (outputs count as square), m sources
        and d destinations with live edges: (t + 2)² T m d products and as many additions, where
        the definition takes 9 t² T m d; T m transforms of 32 additions (t = 2), or of 84
        multiplications and 144 additions (t = 4); T d transforms of 24 additions, or of 30
        multiplications and 100 additions. Filters are transformed once, for no image's cost. Other
        kernels and strides: live edges · positions multiplications and additions."""
        edges = int(live.sum())
        if not edges:
            return Cost()
        stored = Cost(weight_bits=edges * WEIGHT_BITS)
        if not self.applies:
            return stored + Cost(edges * positions, edges * positions)
        tile, side = self.options.tile, self.options.tile + 2
        tiles = math.ceil(math.ceil(math.sqrt(positions)) / tile) ** 2
        pairs = live.flatten(2).any(dim=2)
        sources, destinations = int(pairs.any(dim=0).sum()), int(pairs.any(dim=1).sum())
        products = side * side * sources * destinations
        (by, plus), (by_result, plus_result) = _IMAGE[tile], _RESULT[tile]
        image = Cost(by * 2 * side, plus * 2 * side, transforms=1)
        result = Cost(by_result * (side + tile), plus_result * (side + tile), transforms=1)
        each = image.repeated(sources) + result.repeated(destinations) + Cost(products, products)
        return stored + each.repeated(tiles)
