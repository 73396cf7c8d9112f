"""ResNet-50 as torchvision has it, and a form for small images.

DNW's sparse ResNet-50 wires every layer (`wire_first`, `wire_last`), or all but the first.
"""

from __future__ import annotations

from typing import Any

from search.spaces.base import SPACES
from search.spaces.layered import cifar_training, imagenet_training
from search.spaces.residual import ImageNetOptions, Residual
from wiring.network import ImageShape

LR = 0.256
WARMUP_EPOCHS = 5


@SPACES.register("resnet50")
class ResNet50(Residual):
    """ResNet-50: four stages of bottlenecks, 256 to 2048 channels."""

    name = "resnet50"
    paper = "He et al.: Deep Residual Learning, CVPR 2016; Wortsman et al.: DNW, NeurIPS 2019"
    use = (
        "Where bottlenecks count, or figures on photographs at that size. resnet18 takes half "
        "the operations."
    )
    Options = ImageNetOptions
    depths = (3, 4, 6, 3)
    widths = (64, 128, 256, 512)
    weights = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    bottleneck = True

    def defaults(self, image: ImageShape) -> dict[str, Any]:
        """All edges; at ImageNet's size the learning rate of DNW's sparse ResNet-50."""
        defaults = super().defaults(image)
        afresh = self.form(image) == "large" and not self.pretrained
        return {**defaults, "lr": LR} if afresh else defaults

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """DNW's sparse ResNet-50 on ImageNet (100 epochs), AdderNet's settings on CIFAR."""
        if self.form(image) == "small":
            return cifar_training(images)
        return {
            **imagenet_training(images),
            "weight_decay": 3.05e-5,
            "momentum": 0.875,
            "label_smoothing": 0.1,
            "warmup_epochs": min(WARMUP_EPOCHS, epochs / 20),
        }
