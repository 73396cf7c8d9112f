"""ResNet-20 for CIFAR, with 1x1 convolutions where a shortcut changes its shape.

40,813,184 weight products on 32x32 with 10 classes; AdderNet prints 41.17M, and 69.12M for
ResNet-32, which is ours to the last digit counted in the same way.
"""

from __future__ import annotations

from typing import Any

from search.spaces.base import SPACES
from search.spaces.layered import cifar_training
from search.spaces.residual import Residual
from wiring.network import ImageShape


@SPACES.register("resnet20")
class ResNet20(Residual):
    """ResNet-20: three stages of 3 blocks with 16, 32 and 64 channels."""

    name = "resnet20"
    paper = "He et al.: Deep Residual Learning, CVPR 2016; Chen et al.: AdderNet, CVPR 2020"
    use = (
        "The usual small residual network for 32x32 images, with figures of adder and binary "
        "edges. resnet32 is deeper."
    )
    depths = (3, 3, 3)
    widths = (16, 32, 64)

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """AdderNet's on CIFAR, where it takes 400 epochs."""
        return cifar_training(images)
