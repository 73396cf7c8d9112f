"""The L1 distance of windows to filters: float32, bfloat16, and bytes for inference."""

from wiring.kernels.l1_conv2d.gradients import l1_input_gradient, l1_weight_gradient
from wiring.kernels.l1_conv2d.op import l1_conv2d, l1_linear
from wiring.kernels.l1_conv2d.prepared import PreparedL1, PreparedL1Uint8
from wiring.kernels.l1_conv2d.uint8 import l1_conv2d_uint8

__all__ = [
    "PreparedL1",
    "PreparedL1Uint8",
    "l1_conv2d",
    "l1_conv2d_uint8",
    "l1_input_gradient",
    "l1_linear",
    "l1_weight_gradient",
]
