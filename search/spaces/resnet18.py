"""ResNet-18 as torchvision has it, and a form for small images."""

from __future__ import annotations

from typing import Any

from search.spaces.base import SPACES
from search.spaces.layered import cifar_training, imagenet_training
from search.spaces.residual import ImageNetOptions, Residual
from wiring.network import ImageShape


@SPACES.register("resnet18")
class ResNet18(Residual):
    """ResNet-18: four stages of two blocks with 64 to 512 channels."""

    name = "resnet18"
    paper = "He et al.: Deep Residual Learning, CVPR 2016; Chen et al.: AdderNet, CVPR 2020"
    use = (
        "The usual network for photographs, with trained weights to begin with. For 32x32 "
        "images resnet20 is the usual one."
    )
    Options = ImageNetOptions
    depths = (2, 2, 2, 2)
    widths = (64, 128, 256, 512)
    weights = "https://download.pytorch.org/models/resnet18-f37072fd.pth"

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """AdderNet's on ImageNet (150 epochs) or on CIFAR (400)."""
        large = self.form(image) == "large"
        return imagenet_training(images) if large else cifar_training(images)
