"""AlexNet as torchvision has it, or with batch norms as in XNOR-Net; and a form for small images.

61,100,840 parameters and 714,188,480 multiply-adds at 224x224 without norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution

from search.spaces.base import SPACES
from search.spaces.layered import (
    BIAS_ACT,
    NORM_ACT,
    LayeredSpace,
    Layers,
    PretrainedOptions,
    cifar_training,
    imagenet_training,
    maxpool,
)
from wiring.errors import ConfigError
from wiring.graph.topology import Step
from wiring.network import ImageShape

UNITS = 4096


class Options(PretrainedOptions):
    """`norm` puts batch norms in the place of biases and dropout; by default it does, unless
    weights are pretrained."""

    norm: bool | None = None


@SPACES.register("alexnet")
class AlexNet(LayeredSpace):
    """AlexNet: five convolutions and three fully connected layers."""

    name = "alexnet"
    paper = "Krizhevsky: One weird trick, 2014; Rastegari et al.: XNOR-Net, ECCV 2016"
    use = (
        "To compare with published figures of binary and pruned AlexNets on photographs. For "
        "small images, and for anything new, take resnet18 or mobilenet."
    )
    Options = Options
    weights = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"

    @property
    def norm(self) -> bool:
        """Whether there are batch norms. Raises ConfigError where pretrained weights have none."""
        if self.options.norm and self.pretrained:
            raise ConfigError("pretrained weights of alexnet need norm=false, got true")
        return not self.pretrained if self.options.norm is None else bool(self.options.norm)

    def choices(self, image: ImageShape) -> dict[str, BaseDistribution]:
        """Without norms, learning rates are a tenth."""
        choices = super().choices(image)
        if not self.norm and not self.pretrained:
            choices["lr"] = FloatDistribution(0.005, 0.05, log=True)
        return choices

    def defaults(self, image: ImageShape) -> dict[str, Any]:
        """All edges, in floating point."""
        defaults = super().defaults(image)
        return defaults if self.norm else {**defaults, "lr": 0.01}

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """Cosine; weight decay 5e-4, as the paper and AdderNet have it."""
        large = self.form(image) == "large"
        settings = imagenet_training(images) if large else cifar_training(images)
        return {**settings, "weight_decay": 5e-4}

    def layers(self, layers: Layers, values: Mapping[str, Any], image: ImageShape) -> None:
        """Dropout lies before the first two fully connected layers, as in torchvision."""
        norm = self.norm
        steps = NORM_ACT if norm else BIAS_ACT
        drop: tuple[Step, ...] = () if norm else ("dropout",)
        if self.form(image) == "large":
            pool = maxpool(3, 2, before=steps)
            layers.conv("conv1", 64, 11, stride=4, padding=2, **pool)
            layers.conv("conv2", 192, 5, **pool)
        else:
            pool = maxpool(2, 2, before=steps)
            layers.conv("conv1", 64, 3, **pool)
            layers.conv("conv2", 192, 3, **pool)
        layers.conv("conv3", 384, 3, steps=steps)
        layers.conv("conv4", 256, 3, steps=steps)
        layers.conv("conv5", 256, 3, **{**pool, "steps": (*pool["steps"], *drop)})
        layers.full("fc6", UNITS, steps=(*steps, *drop))
        layers.full("fc7", UNITS, steps=steps)
