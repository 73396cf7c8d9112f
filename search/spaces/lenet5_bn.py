"""LeNet-5 with batch norms, as AdderNet trains it on MNIST.

28x28: conv 5x5 6, pool, conv 5x5 16, pool, fc 120, fc 84, fc classes; 416,520 weight products.
The paper's 435K comes out where a norm counts two operations a value and a pool four an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.spaces.base import SPACES
from search.spaces.layered import LayeredSpace, Layers, cifar_training, maxpool
from wiring.network import ImageShape

KERNEL = 5
SIDE = 32  # LeNet-5's own; smaller images are padded to it


@SPACES.register("lenet5-bn")
class LeNet5(LayeredSpace):
    """LeNet-5 with batch norms: two 5x5 convolutions and three fully connected layers."""

    name = "lenet5-bn"
    paper = "LeCun et al. 1998; Chen et al.: AdderNet, CVPR 2020"
    use = (
        "The quickest test of an operator on digits, with the figures of AdderNet beside it. "
        "For wirings take mobilenet-graph."
    )

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """AdderNet's on MNIST, where it takes 50 epochs; the same as on CIFAR."""
        return cifar_training(images)

    def layers(self, layers: Layers, values: Mapping[str, Any], image: ImageShape) -> None:
        """ReLU behind every norm, pooling by the maximum."""
        missing = max(0, SIDE - image.side)
        layers.conv("conv1", 6, KERNEL, padding=(missing + 1) // 2, **maxpool(2, 2))
        layers.conv("conv2", 16, KERNEL, padding=0, **maxpool(2, 2))
        layers.full("fc1", 120)
        layers.full("fc2", 84)
