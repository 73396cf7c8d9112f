"""Fully connected layers, every one of them under the chosen operator: HashedNets' and the bitwise
network's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from search.spaces.base import SPACES, batch_size
from search.spaces.layered import LayeredOptions, LayeredSpace, Layers
from wiring.config import Component
from wiring.graph.topology import Step
from wiring.network import ImageShape


class Options(LayeredOptions):
    """`hidden` layers of `units` each, and a classifier. Without `norm` they have biases;
    behind either is their `activation`.

    First and last layer take the operator like all others.
    """

    hidden: PositiveInt = 1
    units: PositiveInt = 1000
    norm: bool = True
    activation: Literal["relu", "tanh"] = "relu"


@SPACES.register("mlp")
class Perceptron(LayeredSpace):
    """Fully connected layers, all of them of the chosen operator."""

    name = "mlp"
    paper = "Chen et al.: HashedNets, ICML 2015; Kim, Smaragdis: Bitwise Neural Networks, 2016"
    use = (
        "For methods that were published on fully connected networks, hashed and bitwise ones "
        "first of all. For images at any size a convolutional space is better."
    )
    Options = Options
    ends: ClassVar[Component | None] = None

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """SGD with momentum, cosine."""
        return {
            "batch_size": batch_size(images, 128),
            "weight_decay": 1e-4,
            "momentum": 0.9,
            "schedule": "cosine",
        }

    def layers(self, layers: Layers, values: Mapping[str, Any], image: ImageShape) -> None:
        """The hidden layers."""
        bend: Step = "act" if self.options.activation == "relu" else "tanh"
        steps: tuple[Step, Step] = ("norm" if self.options.norm else "bias", bend)
        for number in range(self.options.hidden):
            layers.full(f"fc{number + 1}", self.options.units, steps=steps)
