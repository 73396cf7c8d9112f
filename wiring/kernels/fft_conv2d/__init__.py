from wiring.kernels.fft_conv2d.definition import fast_size
from wiring.kernels.fft_conv2d.op import fft_conv2d
from wiring.kernels.fft_conv2d.prepared import PreparedFft

__all__ = ["PreparedFft", "fast_size", "fft_conv2d"]
