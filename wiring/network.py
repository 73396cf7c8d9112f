"""A whole classifier as plain data, and as a module: stem → neural graph → head."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from wiring.config import Component, Config
from wiring.graph.build import build_graph
from wiring.graph.costs import edge_prices
from wiring.graph.topology import Topology


class ImageShape(Config):
    """Channels and side of a square image."""

    channels: PositiveInt
    side: PositiveInt


class StemSpec(Config):
    """How an image becomes the graph's input nodes, always in full precision.

    `conv`: 3x3 convolution with `stride`, no bias (mobilenet-graph). `tiny`: 3x3 stride 2 to
    half the width, BN, ReLU, depthwise 3x3 stride 2, 1x1 to the full width, BN. `identity`:
    the image's channels are the nodes. `hidden` sets the half width of `tiny` where input nodes
    have been removed.
    """

    kind: Literal["conv", "tiny", "identity"] = "conv"
    stride: PositiveInt = 1
    hidden: PositiveInt | None = None


class HeadSpec(Config):
    """How the graph's output nodes become class scores.

    `linear`: global average pool, linear with bias. `crop`: average of the central 3x3 pixels,
    linear with bias (the tiny classifiers). `none`: one pooled output node per class.
    """

    kind: Literal["linear", "crop", "none"] = "linear"


class Pretrained(Config):
    """First weights from a file at `url` whose SHA-256 begins with `digest`, hexadecimal.

    Without `classifier` the last bundle keeps the weights that the seed gave it.
    """

    url: str
    digest: str
    classifier: bool = True


class ModelSpec(Config):
    """Everything that determines a network except its weights.

    `space` and `choices` say where it came from; they are not needed to build it. Training starts
    from `pretrained` weights where there are some; building a network does not fetch them.
    """

    space: str
    choices: dict[str, Any]
    image: ImageShape
    classes: PositiveInt
    stem: StemSpec
    topology: Topology
    head: HeadSpec
    op: Component
    rule: Component
    pretrained: Pretrained | None = None


class Network(nn.Module):
    """x [N, channels, side, side] → class scores [N, classes]."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = _stem(spec)
        self.graph = build_graph(spec.topology, spec.op, spec.rule)
        self.head = _head(spec)
        if self.graph.wants_prices:
            self.graph.set_prices(edge_prices(self))

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        scores: Tensor = self.head(self.graph(self.stem(x)))
        return scores


def build_network(spec: ModelSpec, *, seed: int = 0) -> Network:
    """The network of a spec with initial weights (and random wirings) drawn from `seed`.

    Raises UnknownNameError, ConfigError, BudgetError or TopologyError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(spec)


def _stem(spec: ModelSpec) -> nn.Sequential:
    channels, width, stride = spec.image.channels, spec.topology.input.size, spec.stem.stride
    if spec.stem.kind == "identity":
        return nn.Sequential()
    if spec.stem.kind == "conv":
        return nn.Sequential(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False))
    half = spec.stem.hidden or width // 2
    return nn.Sequential(
        nn.Conv2d(channels, half, 3, stride=2, padding=1),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half),
        nn.Conv2d(half, width, 1),
        nn.BatchNorm2d(width),
    )


class CentralCrop(nn.Module):
    """The central 3x3 pixels, or all where there are fewer; [N, C, H, W] → [N, C, ≤3, ≤3]."""

    def forward(self, x: Tensor) -> Tensor:
        top, left = (max(side - 3, 0) // 2 for side in x.shape[-2:])
        return x[..., top : top + 3, left : left + 3]


def _head(spec: ModelSpec) -> nn.Sequential:
    width = spec.topology.output.size
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if spec.head.kind == "none":
        return nn.Sequential(*pool)
    crop = [CentralCrop()] if spec.head.kind == "crop" else []
    return nn.Sequential(*crop, *pool, nn.Linear(width, spec.classes))
