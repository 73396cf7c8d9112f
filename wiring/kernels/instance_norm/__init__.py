"""Instance normalisation of channels_last images, with a ReLU and a depthwise filter behind it."""

from wiring.kernels.instance_norm.depthwise import instance_norm_depthwise
from wiring.kernels.instance_norm.op import instance_norm

__all__ = ["instance_norm", "instance_norm_depthwise"]
