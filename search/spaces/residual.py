"""Residual networks in both orders, built from their depths and widths.

`post` is He 2015, as torchvision has it: relu(norm(conv) + shortcut). `pre` is He 2016 (identity
mappings), in which a block reads norm and ReLU of the running sum: what operators that see signs
need, since behind a block of `post` every value is positive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from search.spaces.layered import (
    NORM_ACT,
    LayeredOptions,
    LayeredSpace,
    Layers,
    PretrainedOptions,
    maxpool,
    reads_signs,
)
from wiring.graph.topology import Step
from wiring.network import ImageShape

Order = Literal["post", "pre"]


class ResidualOptions(LayeredOptions):
    """`order` of norm, ReLU and sum in a block: by default `pre` where an operator sees nothing
    but signs, `post` for others."""

    order: Order | None = None


class ImageNetOptions(PretrainedOptions, ResidualOptions):
    """What the networks of both forms take."""


@dataclass(frozen=True)
class Block:
    """One residual block of `width`: two 3x3 layers, or 1x1, 3x3, 1x1 to four times the width."""

    name: str
    width: int
    stride: int
    bottleneck: bool

    @property
    def channels(self) -> int:
        """At full width."""
        return self.width * 4 if self.bottleneck else self.width

    def kernels(self) -> list[tuple[int, int, int]]:
        """(channels, kernel, stride) of each layer; the 3x3 one of a bottleneck strides."""
        if self.bottleneck:
            return [(self.width, 1, 1), (self.width, 3, self.stride), (self.channels, 1, 1)]
        return [(self.width, 3, self.stride), (self.width, 3, 1)]

    def fits(self, layers: Layers, source: str) -> bool:
        """Whether the shortcut can be the identity."""
        return self.stride == 1 and layers.size(source) == layers.channels(self.channels)


class Residual(LayeredSpace):
    """A first convolution, stages of residual blocks, the mean over the image, a classifier."""

    Options = ResidualOptions
    depths: ClassVar[tuple[int, ...]]
    widths: ClassVar[tuple[int, ...]]
    bottleneck: ClassVar[bool] = False

    def order(self, values: Mapping[str, Any]) -> Order:
        """The order in force."""
        chosen: Order | None = self.options.order
        return chosen or ("pre" if reads_signs(values["op"]) else "post")

    def layers(self, layers: Layers, values: Mapping[str, Any], image: ImageShape) -> None:
        """Layers are named s<stage>b<block>c<layer>, shortcuts s<stage>b<block>short."""
        pre = self.order(values) == "pre"
        if self.form(image) == "large":
            layers.conv("conv1", self.widths[0], 7, stride=2, **maxpool(3, 2, 1))
            if pre:
                layers.join("entry", [layers.last], NORM_ACT)
        else:
            layers.conv("conv1", self.widths[0], 3)
        blocks = self._blocks()
        for block in blocks:
            end: tuple[Step, ...] = ("pool",) if block is blocks[-1] else ()
            add = _pre if pre else _post
            add(layers, block, layers.last, end)

    def _blocks(self) -> list[Block]:
        return [
            Block(
                f"s{stage}b{number}",
                width,
                2 if stage > 1 and number == 1 else 1,
                self.bottleneck,
            )
            for stage, (depth, width) in enumerate(
                zip(self.depths, self.widths, strict=True), start=1
            )
            for number in range(1, depth + 1)
        ]


def _post(layers: Layers, block: Block, source: str, end: tuple[Step, ...]) -> None:
    kernels = block.kernels()
    last = source
    for number, (channels, kernel, stride) in enumerate(kernels, start=1):
        steps: tuple[Step, ...] = NORM_ACT if number < len(kernels) else ("norm",)
        last = layers.conv(
            f"{block.name}c{number}", channels, kernel, stride=stride, steps=steps, source=last
        )
    shortcut = source
    if not block.fits(layers, source):
        shortcut = layers.conv(
            f"{block.name}short",
            block.channels,
            1,
            stride=block.stride,
            steps=("norm",),
            source=source,
        )
    layers.join(block.name, [last, shortcut], ("act", *end))


def _pre(layers: Layers, block: Block, source: str, end: tuple[Step, ...]) -> None:
    kernels = block.kernels()
    last = source
    for number, (channels, kernel, stride) in enumerate(kernels, start=1):
        steps = NORM_ACT if number < len(kernels) else (*NORM_ACT, *end)
        last = layers.conv(
            f"{block.name}c{number}", channels, kernel, stride=stride, steps=steps, source=last
        )
    if block.fits(layers, source):
        layers.skip(source, last, carries="sum")
    else:
        layers.conv(
            f"{block.name}short", block.channels, 1, stride=block.stride, source=source, into=last
        )
