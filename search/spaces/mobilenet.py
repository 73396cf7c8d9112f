"""MobileNetV1 as published: thirteen pairs of a 3x3 depthwise and a pointwise convolution.

Depthwise filters are node functions, pointwise convolutions the edges. 4,231,976 parameters and
568,740,352 multiply-adds at 224x224 with 1000 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.spaces.base import SPACES
from search.spaces.layered import (
    LARGE_IMAGE,
    Form,
    LayeredOptions,
    LayeredSpace,
    Layers,
    imagenet_training,
)
from wiring.graph.topology import Step
from wiring.network import ImageShape

STEM = 32
PAIRS = (  # channels and stride
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
CHAIN: tuple[Step, ...] = ("norm", "act", "depthwise", "norm", "act")


class Options(LayeredOptions):
    """`form` large halves the image in the first convolution, small keeps it; by default large
    is for images of more than 64 pixels a side."""

    form: Form | None = None


@SPACES.register("mobilenet")
class MobileNet(LayeredSpace):
    """MobileNetV1: a 3x3 convolution and thirteen depthwise separable ones."""

    name = "mobilenet"
    paper = "Howard et al.: MobileNets, 2017"
    use = (
        "The published MobileNet, block by block, as the baseline of mobilenet-graph. Where "
        "the wiring itself shall be found, take that."
    )
    Options = Options

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """Cosine from 0.1; weight decay as in DNW's MobileNet graphs."""
        return {
            **imagenet_training(images),
            "weight_decay": 5e-5 if image.side > LARGE_IMAGE else 1e-4,
        }

    def layers(self, layers: Layers, values: Mapping[str, Any], image: ImageShape) -> None:
        """The depthwise filter of a pair belongs to the nodes that its pointwise layer reads."""
        large = self.form(image) == "large"
        strides = [stride for _, stride in PAIRS]
        layers.conv(
            "conv1", STEM, 3, stride=2 if large else 1, steps=CHAIN, filter_stride=strides[0]
        )
        for number, (channels, _) in enumerate(PAIRS, start=1):
            last = number == len(PAIRS)
            layers.conv(
                f"pw{number}",
                channels,
                1,
                steps=("norm", "act", "pool") if last else CHAIN,
                filter_stride=1 if last else strides[number],
            )
