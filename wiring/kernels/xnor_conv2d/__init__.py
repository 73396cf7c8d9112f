"""Convolutions of packed bits: signs, one-bit weights with real inputs, and bit planes."""

from wiring.kernels.xnor_conv2d.bitplane import bitplane_conv2d
from wiring.kernels.xnor_conv2d.bwn import bwn_conv2d, bwn_linear
from wiring.kernels.xnor_conv2d.filters import binary_filters, binary_gradient, row_scales
from wiring.kernels.xnor_conv2d.op import packs_inputs, xnor_conv2d, xnor_linear
from wiring.kernels.xnor_conv2d.prepared import PreparedBwn, PreparedXnor

__all__ = [
    "PreparedBwn",
    "PreparedXnor",
    "binary_filters",
    "binary_gradient",
    "bitplane_conv2d",
    "bwn_conv2d",
    "bwn_linear",
    "packs_inputs",
    "row_scales",
    "xnor_conv2d",
    "xnor_linear",
]
