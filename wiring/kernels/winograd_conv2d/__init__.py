from wiring.kernels.winograd_conv2d.op import winograd_conv2d
from wiring.kernels.winograd_conv2d.prepared import PreparedWinograd
from wiring.kernels.winograd_conv2d.tiles import TILES

__all__ = ["TILES", "PreparedWinograd", "winograd_conv2d"]
