"""Layered networks as neural graphs: bundles carry kernels, a layer is a scope, skips are fixed.

A layer is a bundle and the group it feeds, of the same name. The image's channels are the input
nodes, and the last group has a node per class.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from optuna.distributions import BaseDistribution, FloatDistribution
from pydantic import Field

from search.spaces.base import Space, batch_size, common_choices, common_defaults, exact
from wiring.config import Component, Config, parse
from wiring.errors import ConfigError
from wiring.graph.budgets import Scheme, distribute
from wiring.graph.topology import Bundle, NodeGroup, Scope, Skip, Step, Topology, Window
from wiring.network import HeadSpec, ImageShape, ModelSpec, Pretrained, StemSpec

IMAGE = "image"
CLASSES = "classes"
NARROWEST = 4  # channels that a width below 1 leaves of a layer
LARGE_IMAGE = 64  # beyond this side a network takes its ImageNet form
PRETRAINED_CLASSES = 1000  # ImageNet's
DENSE = Component(name="dense")

Form = Literal["small", "large"]

NORM_ACT: tuple[Step, ...] = ("norm", "act")
BIAS_ACT: tuple[Step, ...] = ("bias", "act")


class LayeredOptions(Config):
    """`width` multiplies the channels of every layer but the classifier.

    First and last layer stay in full precision, and keep all their edges unless `wire_first` or
    `wire_last` give them a budget like the others; a wired classifier has no bias. `scheme` says
    how edges are spread over the wired layers (see wiring/graph/budgets.py).
    """

    width: float = Field(default=1.0, gt=0, le=4)
    wire_first: bool = False
    wire_last: bool = False
    scheme: Scheme = "uniform"


class PretrainedOptions(LayeredOptions):
    """`form` large is ImageNet's, small has gentler strides; by default large is for images of
    more than 64 pixels a side. `pretrained` starts from torchvision's weights, which fit the large
    form at full width; with another number of classes than 1000 the classifier starts afresh."""

    form: Form | None = None
    pretrained: bool = False


class Layers:
    """Builds the topology of a layered network, layer by layer.

    `density` in 0..1 is the share of a wired layer's edges that live. `ends` is the operator of the
    first and the last layer, None for that of the others.
    """

    def __init__(
        self,
        image: ImageShape,
        *,
        density: float,
        options: LayeredOptions,
        ends: Component | None = DENSE,
    ) -> None:
        self.density = exact(density)
        self.options = options
        self.ends = ends
        self.last = IMAGE
        self._groups = [NodeGroup(name=IMAGE, size=image.channels)]
        self._bundles: list[Bundle] = []
        self._wired: list[bool] = []
        self._skips: list[Skip] = []
        self._sides = {IMAGE: (image.side, image.side)}  # of a group's sum, and of its value
        self._stage = 0

    def side(self, group: str | None = None) -> int:
        """Pixels a side of a group's value; by default of the last layer's."""
        return self._sides[group or self.last][1]

    def size(self, group: str | None = None) -> int:
        """Nodes of a group; by default of the last layer's."""
        name = group or self.last
        return next(one.size for one in self._groups if one.name == name)

    def channels(self, number: int) -> int:
        """A layer's channels at the width that the options set."""
        return max(min(number, NARROWEST), round(number * self.options.width))

    def conv(
        self,
        name: str,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        steps: Sequence[Step] = NORM_ACT,
        source: str | None = None,
        into: str | None = None,
        filter_stride: int = 1,
        **node: Any,
    ) -> str:
        """A convolution of `channels` at full width, padded to keep the side unless told, and the
        steps of the nodes behind it; returns the layer's name.

        It reads the last layer unless a `source` is named, and adds to what the group `into`
        receives instead of making one. `filter_stride` is that of a depthwise step, `node` are
        further fields of the group.
        """
        source = source or self.last
        padding = kernel // 2 if padding is None else padding
        before = self.side(source)
        side = slide(before, kernel, stride, padding, f"layer '{name}'")
        if into is None:
            self._group(name, self.channels(channels), steps, side, stride=filter_stride, **node)
        self._bundles.append(
            Bundle(
                name=name,
                sources=(source,),
                destination=into or name,
                kernel=(kernel, kernel),
                stride=stride,
                padding=padding,
                op=None if len(self._bundles) else self.ends,
            )
        )
        self._wired.append(len(self._bundles) > 1 or self.options.wire_first)
        return name

    def full(self, name: str, units: int, *, steps: Sequence[Step] = NORM_ACT, **node: Any) -> str:
        """A fully connected layer over all that is left of the image."""
        return self.conv(name, units, self.side(), padding=0, steps=steps, **node)

    def join(
        self,
        name: str,
        sources: Sequence[str],
        steps: Sequence[Step],
        *,
        gate: bool = False,
        **node: Any,
    ) -> str:
        """A group without edges that adds up what other groups give, each behind a gate where
        asked; returns its name."""
        self._group(name, self.size(sources[0]), steps, self.side(sources[0]), **node)
        for source in sources:
            self.skip(source, name, carries="value", gate=gate)
        return name

    def skip(self, source: str, destination: str, **fields: Any) -> None:
        """A fixed identity between two groups."""
        self._skips.append(Skip(source=source, destination=destination, **fields))

    def classifier(self, classes: int) -> Topology:
        """The last fully connected layer, and with it the whole graph."""
        wired = self.options.wire_last
        side = self.side()
        self._bundles.append(
            Bundle(
                name=CLASSES,
                sources=(self.last,),
                destination=CLASSES,
                kernel=(side, side),
                op=self.ends,
            )
        )
        self._wired.append(wired)
        self._group(CLASSES, classes, () if wired else ("bias",), 1)
        return self._topology()

    def _group(self, name: str, size: int, steps: Sequence[Step], side: int, **node: Any) -> None:
        self._stage += 1
        group = NodeGroup(name=name, size=size, steps=steps, stage=self._stage, **node)
        self._groups.append(group)
        self._sides[name] = (side, value_side(group, side))
        self.last = name

    def _topology(self) -> Topology:
        """Raises TopologyError or BudgetError."""
        every = Topology(
            groups=tuple(self._groups),
            bundles=tuple(self._bundles),
            scopes=tuple(Scope(name=b.name, bundles=(b.name,)) for b in self._bundles),
            skips=tuple(self._skips),
        )
        scopes = tuple(
            scope.replace(budget=math.ceil(self.density * every.usable_edges(scope)))
            if wired
            else scope
            for scope, wired in zip(every.scopes, self._wired, strict=True)
        )
        topology = every.model_copy(update={"scopes": scopes})
        if self.options.scheme == "uniform":
            return topology
        return distribute(topology, float(self.density), self.options.scheme)


def value_side(group: NodeGroup, side: int) -> int:
    """Pixels a side of a group's value, from those of its sum. Raises ConfigError."""
    for step in group.steps:
        if step == "depthwise":
            side = slide(side, 3, group.stride, 1, f"group '{group.name}'")
        elif step in ("maxpool", "avgpool"):
            window = group.window
            where = f"the pooling of '{group.name}'"
            side = slide(side, window.size, window.stride, window.padding, where)
        elif step == "pool":
            side = 1
    return side


def slide(side: int, kernel: int, stride: int, padding: int, where: str) -> int:
    """Pixels a side behind a window. Raises ConfigError where nothing is left."""
    left = (side + 2 * padding - kernel) // stride + 1
    if left < 1:
        raise ConfigError(
            f"images are too small: {where} slides {kernel} pixels over {side + 2 * padding}"
        )
    return left


class LayeredSpace(Space):
    """A network of layers, each a scope with the same share of its edges alive."""

    Options = LayeredOptions
    budget_choices = ("density",)  # `width` is about nodes here
    # The operator of the first and the last layer; None for that of the others.
    ends: ClassVar[Component | None] = DENSE
    # Torchvision's file for the large form; its name ends in the begin of its SHA-256.
    weights: ClassVar[str]

    def form(self, image: ImageShape) -> Form:
        """The form in force for images of this shape."""
        chosen: Form | None = getattr(self.options, "form", None)
        return chosen or ("large" if image.side > LARGE_IMAGE else "small")

    def choices(self, image: ImageShape) -> dict[str, BaseDistribution]:
        """The share of edges that lives in every wired layer, and the common choices; with
        pretrained weights, smaller learning rates."""
        choices = {"density": FloatDistribution(0.05, 1.0, log=True), **common_choices()}
        if self.pretrained:
            choices["lr"] = FloatDistribution(0.001, 0.1, log=True)
        return choices

    def defaults(self, image: ImageShape) -> dict[str, Any]:
        """All edges: the published network."""
        defaults = {"density": 1.0, **common_defaults()}
        return {**defaults, "lr": 0.01} if self.pretrained else defaults

    @property
    def pretrained(self) -> bool:
        """Whether training starts from torchvision's weights."""
        return bool(getattr(self.options, "pretrained", False))

    @abstractmethod
    def layers(self, layers: Layers, values: Mapping[str, Any], image: ImageShape) -> None:
        """Add everything between the image and the classifier."""

    def build(self, values: Mapping[str, Any], image: ImageShape, classes: int) -> ModelSpec:
        """Raises ConfigError for images that the network's windows do not fit into."""
        layers = Layers(image, density=values["density"], options=self.options, ends=self.ends)
        self.layers(layers, values, image)
        spec = self.spec(
            values,
            image,
            classes,
            stem=StemSpec(kind="identity"),
            topology=layers.classifier(classes),
            head=HeadSpec(kind="none"),
        )
        if not self.pretrained:
            return spec
        return spec.model_copy(update={"pretrained": self._source(values["op"], image, classes)})

    def _source(self, op: Any, image: ImageShape, classes: int) -> Pretrained:
        """Torchvision's weights. Raises ConfigError where this network cannot start from them."""
        options, reason = self.options, None
        if self.form(image) == "small":
            reason = f"the large form; images of {image.side} pixels a side take the small one"
        elif options.width != 1:
            reason = f"a width of 1, got {options.width:g}"
        elif options.wire_last:
            reason = "a classifier with bias, which wire_last takes away"
        elif image.channels != 3:
            reason = f"images of 3 channels, got {image.channels}"
        elif reads_signs(op):
            name = parse(Component, op).name
            reason = f"norms before ReLUs; operator '{name}' needs them behind"
        if reason is not None:
            raise ConfigError(f"pretrained weights of {self.name} need {reason}")
        digest = self.weights.rpartition("-")[2].partition(".")[0]
        return Pretrained(url=self.weights, digest=digest, classifier=classes == PRETRAINED_CLASSES)


def maxpool(
    size: int, stride: int, padding: int = 0, *, before: Sequence[Step] = NORM_ACT
) -> dict[str, Any]:
    """Steps and window of nodes that normalise, activate and pool."""
    window = Window(size=size, stride=stride, padding=padding)
    return {"steps": (*before, "maxpool"), "window": window}


def reads_signs(op: Any) -> bool:
    """Whether the operator, or one of those that are mixed, sees nothing of a value but its sign:
    then nodes need a norm behind their ReLU."""
    from wiring.graph.edges import EDGE_OPS
    from wiring.graph.mixed import operators

    parts = operators(parse(Component, op))
    return any(EDGE_OPS.get(part.name).sensitive for part in parts)


def cifar_training(images: int) -> dict[str, Any]:
    """AdderNet's settings on CIFAR, where it takes 400 epochs."""
    return {
        "batch_size": batch_size(images, 256),
        "weight_decay": 5e-4,
        "momentum": 0.9,
        "schedule": "cosine",
    }


def imagenet_training(images: int) -> dict[str, Any]:
    """The settings that He et al. and AdderNet (150 epochs, cosine) share on ImageNet."""
    return {**cifar_training(images), "weight_decay": 1e-4}
