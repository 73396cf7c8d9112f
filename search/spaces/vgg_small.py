"""VGG-small, the network of HWGQ that later work on CIFAR compares quantised convolutions with.

2x(128C3) MP 2x(256C3) MP 2x(512C3) MP fc: 607,600,640 weight products on 32x32. AdderNet prints
0.65G for it, which a seventh convolution of 512 channels behind the last pool would give
(645,349,376); with the layers of HWGQ the count is 0.61G.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.spaces.base import SPACES
from search.spaces.layered import LayeredOptions, LayeredSpace, Layers, cifar_training, maxpool
from wiring.network import ImageShape

WIDTHS = (128, 256, 512)


class Options(LayeredOptions):
    """`seventh` adds a convolution of 512 channels behind the last pool."""

    seventh: bool = False


@SPACES.register("vgg-small")
class VggSmall(LayeredSpace):
    """Six 3x3 convolutions of 128 to 512 channels and one fully connected layer."""

    name = "vgg-small"
    paper = "Cai et al.: HWGQ, CVPR 2017; Chen et al.: AdderNet, CVPR 2020"
    use = (
        "To compare with published figures of adder, binary and quantised VGGs on 32x32 "
        "images. resnet20 reaches as much with less."
    )
    Options = Options

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """AdderNet's on CIFAR, where it takes 400 epochs."""
        return cifar_training(images)

    def layers(self, layers: Layers, values: Mapping[str, Any], image: ImageShape) -> None:
        """A pool behind every second convolution."""
        vgg(layers, WIDTHS)
        if self.options.seventh:
            layers.conv("conv7", WIDTHS[-1], 3)


def vgg(layers: Layers, widths: tuple[int, ...]) -> None:
    """Two 3x3 convolutions of each width, a pool behind the second."""
    for stage, width in enumerate(widths):
        layers.conv(f"conv{2 * stage + 1}", width, 3)
        layers.conv(f"conv{2 * stage + 2}", width, 3, **maxpool(2, 2))
