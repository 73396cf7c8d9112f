from wiring.kernels.masked_conv2d.op import (
    masked_conv2d,
    masked_conv2d_input_gradient,
    masked_conv2d_weight_gradient,
    masked_linear,
)

__all__ = [
    "masked_conv2d",
    "masked_conv2d_input_gradient",
    "masked_conv2d_weight_gradient",
    "masked_linear",
]
