"""ResNet-32 for CIFAR, with 1x1 convolutions where a shortcut changes its shape.

69,124,736 weight products on 32x32 with 10 classes: AdderNet's 69.12M.
"""

from __future__ import annotations

from typing import Any

from search.spaces.base import SPACES
from search.spaces.layered import cifar_training
from search.spaces.residual import Residual
from wiring.network import ImageShape


@SPACES.register("resnet32")
class ResNet32(Residual):
    """ResNet-32: three stages of 5 blocks with 16, 32 and 64 channels."""

    name = "resnet32"
    paper = "He et al.: Deep Residual Learning, CVPR 2016; Chen et al.: AdderNet, CVPR 2020"
    use = (
        "The deeper of the residual networks for 32x32 images. resnet20 trains in two thirds "
        "of the time."
    )
    depths = (5, 5, 5)
    widths = (16, 32, 64)

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """AdderNet's on CIFAR, where it takes 400 epochs."""
        return cifar_training(images)
