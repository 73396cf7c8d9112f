from wiring.kernels.masked_conv2d.op import (
    masked_conv2d,
    masked_conv2d_input_gradient,
    masked_conv2d_weight_gradient,
    masked_linear,
)
from wiring.kernels.masked_conv2d.prepared import PreparedMasked

__all__ = [
    "PreparedMasked",
    "masked_conv2d",
    "masked_conv2d_input_gradient",
    "masked_conv2d_weight_gradient",
    "masked_linear",
]
