"""MobileNetV1 as five chained neural graphs, each with one budget of edges for its stage.

k = ⌈d² (inp·oup + (b−1)·oup²)⌉ live edges in a stage of b layers of oup channels
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.distributions import BaseDistribution, FloatDistribution
from pydantic import Field

from search.spaces.base import SPACES, Space, batch_size, common_choices, common_defaults, exact
from wiring.config import Component, Config
from wiring.graph.topology import Bundle, NodeGroup, Scope, Step, Topology
from wiring.network import HeadSpec, ImageShape, ModelSpec, StemSpec

INPUTS = 32
WIDTHS = (64, 128, 256, 512, 1024)
STRIDES = (1, 2, 2, 2, 2)
LAYERS = (1, 2, 2, 6, 2)
LARGE_IMAGE = 64  # from this side on the default size is full; beyond it the stem halves

Size = Literal["full", "half", "quarter", "eighth"]
DIVISORS: dict[Size, int] = {"full": 1, "half": 2, "quarter": 4, "eighth": 8}
STAGE_4_LAYERS: dict[Size, int] = {"full": 6, "half": 4, "quarter": 2, "eighth": 2}

CHAIN: tuple[Step, ...] = ("norm", "act", "depthwise")


@dataclass(frozen=True)
class Stage:
    """`layers` layers of `channels` nodes; `inputs` nodes of the stage before feed it."""

    inputs: int
    channels: int
    stride: int
    layers: int


class Options(Config):
    """`size` scales every layer down by 2, 4 or 8, and stage 4 has 4, 2 or 2 layers then.

    By default images of at least 64 pixels a side get `full`, smaller ones `quarter`. `width`
    pins the width multiplier of all stages. `small` wires the classifier too, without bias.
    `pool` is what competes for a stage's budget: its `usable` edges, or as in the `released` code
    of the paper the whole weight matrix, of which entries that point backwards are never read.
    """

    size: Size | None = None
    width: float | None = Field(default=None, gt=0, le=1)
    small: bool = False
    pool: Literal["usable", "released"] = "usable"


@SPACES.register("mobilenet-graph")
class MobileNetGraph(Space):
    """MobileNetV1 as five chained graphs whose stages each share one edge budget."""

    name = "mobilenet-graph"
    paper = "Wortsman, Farhadi, Rastegari: Discovering Neural Wirings, NeurIPS 2019"
    use = (
        "The first space to search: wirings of MobileNet's channels, from tiny to full size. "
        "Where layers and their shapes shall stay as published, take mobilenet or resnet18."
    )
    Options = Options

    def size(self, image: ImageShape) -> Size:
        """The preset in force for images of this shape."""
        chosen: Size | None = self.options.size
        return chosen or ("full" if image.side >= LARGE_IMAGE else "quarter")

    def stages(self, image: ImageShape) -> list[Stage]:
        """The five stages."""
        size = self.size(image)
        divisor = DIVISORS[size]
        layers = (*LAYERS[:3], STAGE_4_LAYERS[size], LAYERS[4])
        channels = [width // divisor for width in (INPUTS, *WIDTHS)]
        return [
            Stage(*stage)
            for stage in zip(channels[:-1], channels[1:], STRIDES, layers, strict=True)
        ]

    def choices(self, image: ImageShape) -> dict[str, BaseDistribution]:
        """A width multiplier per stage, and the common choices.

        Binary edges need a few sources a node, which the narrow presets reach at larger
        multipliers only: full starts at 0.15 (the paper's smallest), the others at 0.3.
        """
        width = self.options.width
        low, high = (0.15 if self.size(image) == "full" else 0.3, 1.0)
        if width is not None:
            low = high = width
        return {
            **{key: FloatDistribution(low, high, log=True) for key in self._width_keys()},
            **common_choices(),
        }

    def defaults(self, image: ImageShape) -> dict[str, Any]:
        """×.225 in the full size, ×.6 in the smaller ones, by DNW in floating point."""
        width = self.options.width or (0.225 if self.size(image) == "full" else 0.6)
        return {**dict.fromkeys(self._width_keys(), width), **common_defaults()}

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """Cosine from 0.1; the paper's batches of 128, and of 512 for large images."""
        large = image.side > LARGE_IMAGE
        return {
            "batch_size": batch_size(images, 512 if large else 128),
            "weight_decay": 5e-5 if large else 1e-4,
            "momentum": 0.9,
            "schedule": "cosine",
        }

    def build(self, values: Mapping[str, Any], image: ImageShape, classes: int) -> ModelSpec:
        """One topology for the whole chain: a stage's output layer is the next one's input."""
        stages = self.stages(image)
        groups = [
            NodeGroup(name="input", size=stages[0].inputs, steps=CHAIN, stride=stages[0].stride)
        ]
        bundles: list[Bundle] = []
        scopes: list[Scope] = []
        for number, stage in enumerate(stages, start=1):
            layers = [self._layer(stages, number, layer) for layer in range(1, stage.layers + 1)]
            names = [group.name for group in layers]
            sources = [groups[-1].name, *names]
            bundles += [
                Bundle(name=name, sources=tuple(sources[:layer]), destination=name)
                for layer, name in enumerate(names, start=1)
            ]
            k = budget(stage, values[f"width.s{number}"])
            backwards = unusable(stage) if self.options.pool == "released" else 0
            scopes.append(
                Scope(name=f"s{number}", bundles=tuple(names), budget=k, unusable=backwards)
            )
            groups += layers
        if self.options.small:
            features = groups[-1]
            groups.append(NodeGroup(name="classes", size=classes, stage=len(stages) + 1))
            bundles.append(
                Bundle(
                    name="classifier",
                    sources=(features.name,),
                    destination="classes",
                    op=Component(name="dense"),
                )
            )
            k = math.ceil(exact(values["width.classifier"]) * features.size * classes)
            scopes.append(Scope(name="classifier", bundles=("classifier",), budget=k))
        return self.spec(
            values,
            image,
            classes,
            stem=StemSpec(kind="conv", stride=1 if image.side <= LARGE_IMAGE else 2),
            topology=Topology(groups=tuple(groups), bundles=tuple(bundles), scopes=tuple(scopes)),
            head=HeadSpec(kind="none" if self.options.small else "linear"),
        )

    def _layer(self, stages: list[Stage], number: int, layer: int) -> NodeGroup:
        stage = stages[number - 1]
        steps, stride = CHAIN, 1
        if layer == stage.layers and number < len(stages):
            stride = stages[number].stride
        elif layer == stage.layers:
            steps = ("norm", "act", "pool") if self.options.small else ("norm", "act")
        return NodeGroup(
            name=f"s{number}l{layer}",
            size=stage.channels,
            steps=steps,
            stride=stride,
            stage=number,
        )

    def _width_keys(self) -> list[str]:
        keys = [f"width.s{number}" for number in range(1, len(WIDTHS) + 1)]
        return [*keys, "width.classifier"] if self.options.small else keys


def budget(stage: Stage, width: float) -> int:
    """Live edges of a stage at width multiplier `width` in 0..1, at least 1."""
    pool = stage.inputs * stage.channels + (stage.layers - 1) * stage.channels**2
    return math.ceil(exact(width) ** 2 * pool)


def unusable(stage: Stage) -> int:
    """Entries of a stage's matrix, all layers by all but the last, that run no edge forwards."""
    entries = stage.channels * stage.layers * (stage.inputs + stage.channels * (stage.layers - 1))
    edges = (
        stage.channels * (stage.inputs + stage.channels * layer) for layer in range(stage.layers)
    )
    return entries - sum(edges)
