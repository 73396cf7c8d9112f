"""W[v, b] = C_b[code_b(v)]: the weights of a row lie in s blocks, and of each block there are k
kinds, found by k-means over the rows; dC_b[j] = Σ_{code_b(v) = j} dW[v, b].

W [m, n] takes m·s·log2 k + 32·k·n bits. In evaluation k·n products make a table of what each
centroid sees of the input, and m·s look-ups add it up (Gong et al.; Jégou et al.:
Product Quantization for Nearest Neighbor Search, PAMI 2011). A k×k convolution is taken as its
rows of n = S·kh·kw weights, with the same tables for every position.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from wiring.config import Config
from wiring.cost import Cost
from wiring.errors import ConfigError
from wiring.graph.edges import EDGE_OPS
from wiring.graph.vector_codebook import VectorCodebook, VectorOptions

LENGTH = 4


class Options(VectorOptions):
    """`blocks` of a row, as even as they come, or the `length` of a block in weights (4 where
    neither is given; the last one may be shorter). A row has at least one weight in each."""

    blocks: int | None = Field(default=None, ge=1)
    length: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_division(self) -> Self:
        if self.blocks is not None and self.length is not None:
            raise ConfigError(
                f"blocks are given twice: {self.blocks} of them, and of {self.length} weights"
            )
        return self


@EDGE_OPS.register("product-vq")
class ProductQuantised(VectorCodebook):
    """Blocks of a row's weights come from small codebooks: products become look-ups."""

    paper = (
        "Gong et al.: Compressing Deep Convolutional Networks using Vector Quantization, arXiv 2014"
    )
    use = (
        "For layers of thousands of destinations (the full layers of AlexNet or VGG): one to two "
        "bits a weight, and fewer products. With few rows the codebooks, 32·k/rows bits a weight, "
        "outweigh what they replace: take vq."
    )
    Options: ClassVar[type[Config]] = Options

    def cost(self, live: Tensor, positions: int) -> Cost:
        """32 bits per live edge, then m·s·⌈log2 k⌉ + 32·k·n: a code for every row and block with a
        live edge, k centroids over every column with one (and a bit for each of these, in whole
        bytes, where nodes were cut out of blocks). Operations per position are those of the
        cheaper of two forms that compile to the same: tables, k·n products and additions and
        m·s look-ups and additions; or weights written out, a product and an addition per live
        edge. Tables need every row to have all of a block's live columns, or none."""
        return super().cost(live, positions)

    def divide(self, width: int) -> Tensor:
        blocks: int | None = self.options.blocks
        length: int = self.options.length or LENGTH
        if blocks is None:
            return torch.arange(width) // length
        return torch.arange(width) * min(blocks, width) // width
