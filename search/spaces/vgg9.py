"""VGG-9, BinaryConnect's network: 2x(128C3) MP 2x(256C3) MP 2x(512C3) MP 2x(1024FC) fc."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.spaces.base import SPACES
from search.spaces.layered import LayeredSpace, Layers, cifar_training
from search.spaces.vgg_small import WIDTHS, vgg
from wiring.network import ImageShape


@SPACES.register("vgg9")
class Vgg9(LayeredSpace):
    """Six 3x3 convolutions of 128 to 512 channels and three fully connected layers."""

    name = "vgg9"
    paper = "Courbariaux et al.: BinaryConnect, NIPS 2015; Hu et al.: BWNH, AAAI 2018"
    use = (
        "To compare with the published figures of BWN and BWNH on 32x32 images. vgg-small is "
        "the usual one elsewhere."
    )

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """As VGG-small."""
        return cifar_training(images)

    def layers(self, layers: Layers, values: Mapping[str, Any], image: ImageShape) -> None:
        """VGG-small with two fully connected layers of 1024 units before the classifier."""
        vgg(layers, WIDTHS)
        layers.full("fc1", 1024)
        layers.full("fc2", 1024)
