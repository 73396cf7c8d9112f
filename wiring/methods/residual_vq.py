"""W[v] = Σ_t C_t[code_t(v)]: k-means over whole rows, then over what that leaves, t times;
dC_t[j] = Σ_{code_t(v) = j} dW[v].

W [m, n] takes t·(m·log2 k + 32·k·n) bits. In evaluation t·k·n products make a table of what each
centroid sees of the input, and t·m look-ups add it up (Gong et al.).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS
from wiring.graph.vector_codebook import VectorCodebook, VectorOptions


class Options(VectorOptions):
    """`stages` t: how many centroids add up to a row."""

    stages: Annotated[int, Field(ge=1, le=64)] = 2


@EDGE_OPS.register("residual-vq")
class ResidualQuantised(VectorCodebook):
    """Rows are sums of few centroids, each fitted to what those before it leave."""

    paper = (
        "Gong et al.: Compressing Deep Convolutional Networks using Vector Quantization, arXiv 2014"
    )
    use = (
        "For layers of many rows that are alike. Codebooks of whole rows are large: product-vq "
        "mostly takes fewer bits for the same error."
    )
    Options: ClassVar[type[Config]] = Options

    def cost(self, live: Tensor, positions: int) -> Cost:
        """32 bits per live edge, then t·(m·⌈log2 k⌉ + 32·k·n): t codes for every row with a live
        edge, t·k centroids over every column with one. Operations per position are those of the
        cheaper of two forms that compile to the same: tables, t·k·n products and additions and
        t·m look-ups and additions; or weights written out, a product and an addition per live
        edge. Tables need every row to have all of the live columns, or none."""
        return super().cost(live, positions)

    @property
    def terms(self) -> int:
        return int(self.options.stages)

    def divide(self, width: int) -> Tensor:
        return torch.zeros(width, dtype=torch.int64)
