"""The exact ways to compute a convolution of fixed weights, as forms of a compiled bundle.

Which one is fastest depends on the machine, the image and the batch: `wiring.compile` measures
those that are offered. Offered are only those that have been seen to win somewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.graph.edges import Epilogue, Kernel, one_at_a_time
from wiring.kernels.fft_conv2d import PreparedFft
from wiring.kernels.fft_conv2d.prepared import LIMIT_BYTES, TILE
from wiring.kernels.winograd_conv2d import TILES, PreparedWinograd

# Below these numbers of sources and of destinations transforms take longer than they save.
WINOGRAD_CHANNELS = 32
FFT_CHANNELS = 16
# Live taps per pair of channels and squared stride from which on Fourier transforms may win.
FFT_TAPS = 25
# Of nine taps; below it the live edges alone are fewer than a tile's products.
WINOGRAD_TAPS = 4.5


@dataclass(frozen=True)
class Rounding:
    """A kernel of transforms, whose rounding is relative to the largest values of a tile or an
    image, and which spreads a NaN over them. Where that shows on the example that a network is
    compiled for, the form is not taken."""

    kernel: Kernel
    rounds: ClassVar[bool] = True

    def __call__(self, x: Tensor) -> Tensor:
        return self.kernel(x)


def _after(kernel: Kernel, epilogue: Epilogue) -> Kernel:
    return Rounding(epilogue.unscaled().after(kernel, fresh=True))


def fft_forms(weight: Tensor, stride: int, padding: int, epilogue: Epilogue) -> dict[str, Kernel]:
    """Fourier transforms of whole images, and of tiles of 32 pixels where these hold two kernels.

    weight [D, S, kh, kw] with the epilogue's scale in it.
    """
    steps = {"stride": stride, "padding": padding}
    forms = {"fft": _after(one_at_a_time(PreparedFft(weight, **steps)), epilogue)}
    if 2 * max(weight.shape[2:]) <= TILE:
        tiled = PreparedFft(weight, tile=TILE, **steps)
        forms[f"fft {TILE}"] = _after(one_at_a_time(tiled), epilogue)
    return forms


def winograd_forms(
    weight: Tensor, padding: int, epilogue: Epilogue, tiles: tuple[int, ...] = TILES
) -> dict[str, Kernel]:
    """Winograd tiles, for weights [D, S, 3, 3] at stride 1 with the epilogue's scale in them."""
    return {
        f"winograd {tile}": _after(PreparedWinograd(weight, padding=padding, tile=tile), epilogue)
        for tile in tiles
    }


def direct_forms(
    weight: Tensor, stride: int, padding: int, epilogue: Epilogue
) -> dict[str, Kernel]:
    """PyTorch's own convolution, with weights [D, S, kh, kw] in both memory formats."""
    relu = Epilogue(relu=epilogue.relu)
    convolve = partial(F.conv2d, bias=epilogue.shift, stride=stride, padding=padding)
    last = weight.contiguous(memory_format=torch.channels_last)
    return {
        "conv": relu.after(partial(convolve, weight=weight), fresh=True),
        "conv channels_last": relu.after(partial(convolve, weight=last), fresh=True),
    }


def fast_forms(
    weight: Tensor, live: Tensor, stride: int, padding: int, epilogue: Epilogue
) -> dict[str, Kernel]:
    """The forms that may beat PyTorch's convolution for these sizes and this density; often none.

    Fourier transforms take 16 channels on both sides, 25 live taps a pair of channels (times the
    squared stride) and filters of at most 256 MiB; Winograd tiles 3x3 kernels at stride 1, 32
    channels on both sides, and half of the edges alive.
    """
    destinations, sources, kh, kw = weight.shape
    pairs, channels = destinations * sources, min(destinations, sources)
    taps = int(live.sum()) / max(1, pairs)
    forms: dict[str, Kernel] = {}
    tile_bytes = TILE * (TILE // 2 + 1) * 2 * weight.element_size()
    if (
        channels >= FFT_CHANNELS
        and taps >= FFT_TAPS * stride**2
        and pairs * tile_bytes <= LIMIT_BYTES
    ):
        forms |= fft_forms(weight, stride, padding, epilogue)
    if (kh, kw, stride) == (3, 3, 1) and channels >= WINOGRAD_CHANNELS and taps >= WINOGRAD_TAPS:
        forms |= winograd_forms(weight, padding, epilogue)
    return forms
