"""y_v = Σ_live c[code_uv] x_u: every weight is one of k numbers, found by k-means over the layer's
live weights; dc_j = Σ_{code_uv = j} dw_uv.

m·n weights take m·n·log2 k + 32 k bits (Gong et al.), with dead edges
live·⌈log2 k⌉ + 32 k.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.bitstream import BitReader, number_bits, pack_numbers
from wiring.graph.codebook import ScalarCodebook, ScalarOptions, written_out
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS


class Options(ScalarOptions):
    """Where neither `centroids` nor `bits` is given, there are 32 centroids."""


@EDGE_OPS.register("vq")
class VectorQuantised(ScalarCodebook):
    """Weights move onto k shared values, found by k-means (scalar quantisation)."""

    Options: ClassVar[type[Config]] = Options
    paper = (
        "Gong et al.: Compressing Deep Convolutional Networks using Vector Quantization, arXiv 2014"
    )
    use = (
        "For files 6 to 16 times smaller at little loss, with fixed-width codes that are simple to "
        "read. Take deep-compression for pruned networks whose file should be smallest."
    )

    def cost(self, live: Tensor, positions: int) -> Cost:
        """32 bits per live edge, then live·⌈log2 k⌉ + 32·k: a code each, and k centroids. Weights
        are written out when a file is read: a product and an addition per live edge and
        position."""
        return super().cost(live, positions)

    def codebook_cost(self, live: Tensor, positions: int) -> Cost:
        edges = int(live.sum())
        bits = edges * number_bits(self.count) + WEIGHT_BITS * self.count
        return written_out(edges, positions, bits)

    def pack_codebook(self, live: Tensor) -> dict[str, Tensor]:
        """`codes`: ⌈log2 k⌉ bits per live edge, in order, uint8; `centroids`: float32 [k]."""
        codes = pack_numbers([(self.codes[live], number_bits(self.count))])
        return {"codes": codes, "centroids": self.centroids.detach().to(torch.float32)}

    def unpack_codebook(self, stored: dict[str, Tensor], live: Tensor) -> None:
        codes = BitReader(stored["codes"]).take(int(live.sum()), number_bits(self.count))
        self.codes.zero_()
        self.codes[live] = codes.to(self.codes)
        self.centroids.copy_(stored["centroids"])

    def holds_codebook(self, stored: dict[str, Tensor]) -> bool:
        return "centroids" in stored
