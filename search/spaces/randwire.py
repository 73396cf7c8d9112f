"""Randomly wired networks: stages whose wiring a random graph says, found by its parameters.

A node of the random graph sums what it receives, each edge weighed by a sigmoid, and applies
ReLU, a separable 3x3 convolution and a norm. In the neural graph that is two groups and a bundle:
`s2n5` sums (its incoming edges are gated skips), activates and filters, the pointwise bundle
`s2n5c` leads to a group of that name, which normalises. Edge rules choose among the edges of the
pointwise bundles; the random graph is a choice of the search.

Outputs of a stage are summed where the paper takes their mean: the norms behind undo a scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, PositiveInt

from search.spaces.base import SPACES
from search.spaces.layered import (
    Form,
    LayeredOptions,
    LayeredSpace,
    Layers,
    cifar_training,
    imagenet_training,
    reads_signs,
)
from wiring.graph.generators import barabasi_albert, erdos_renyi, watts_strogatz
from wiring.graph.topology import Step
from wiring.network import ImageShape

if TYPE_CHECKING:
    import networkx as nx

FEATURES = 1280
LARGE_NODES, SMALL_NODES = 32, 8
LARGE_CHANNELS, SMALL_CHANNELS = 78, 32
RING = (2, 4, 6, 8)
MOST_LINKS = 7


class Options(LayeredOptions):
    """`nodes` of the random graph of each of three stages, 32 for the large form and 8 for the
    small; `channels` of the first stage (78, 32), which double with each. `form` large halves the
    image five times, small twice; by default large is for images of more than 64 pixels a side.
    """

    form: Form | None = None
    nodes: int | None = Field(default=None, ge=3, le=256)
    channels: PositiveInt | None = None


@SPACES.register("randwire")
class RandWire(LayeredSpace):
    """Three stages of separable convolutions that a random graph wires."""

    name = "randwire"
    paper = "Xie et al.: Exploring Randomly Wired Neural Networks, ICCV 2019"
    use = (
        "To ask what random wiring between whole layers is worth. Where single channels shall "
        "be wired, take mobilenet-graph."
    )
    Options = Options

    def choices(self, image: ImageShape) -> dict[str, BaseDistribution]:
        """The generator (er, ba, ws), its parameters, the seed of the graphs; and the common."""
        nodes = self._nodes(image)
        return {
            "generator": CategoricalDistribution(("er", "ba", "ws")),
            "er.p": FloatDistribution(0.1, 0.9),
            "ba.m": IntDistribution(1, min(MOST_LINKS, nodes - 1)),
            "ws.k": CategoricalDistribution([k for k in RING if k < nodes]),
            "ws.p": FloatDistribution(0.0, 1.0),
            "graph_seed": IntDistribution(0, 99),
            **super().choices(image),
        }

    def defaults(self, image: ImageShape) -> dict[str, Any]:
        """WS(4, 0.75), the paper's best; all edges of the pointwise bundles live."""
        nodes = self._nodes(image)
        return {
            "generator": "ws",
            "er.p": 0.2,
            "ba.m": min(5, nodes - 1),
            "ws.k": 4 if nodes > 4 else 2,
            "ws.p": 0.75,
            "graph_seed": 0,
            **super().defaults(image),
        }

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """Cosine from 0.1; for ImageNet the paper's weight decay and label smoothing."""
        if self.form(image) == "small":
            return {**cifar_training(images), "weight_decay": 1e-4}
        return {**imagenet_training(images), "weight_decay": 5e-5, "label_smoothing": 0.1}

    def layers(self, layers: Layers, values: Mapping[str, Any], image: ImageShape) -> None:
        """Each stage has a random graph of its own; nodes that read the stage's input stride."""
        large = self.form(image) == "large"
        channels = self.options.channels or (LARGE_CHANNELS if large else SMALL_CHANNELS)
        signs = reads_signs(values["op"])
        layers.conv("conv1", -(-channels // 2), 3, stride=2 if large else 1, steps=("norm",))
        if large:
            layers.join("entry", [layers.last], ("act", "norm") if signs else ("act",))
            layers.conv("conv2", channels, 3, stride=2, steps=("norm",))
        for stage in (1, 2, 3):
            graph = generate(values, self._nodes(image), values["graph_seed"] * 3 + stage)
            stride = 2 if large or stage > 1 else 1
            _wire(layers, graph, f"s{stage}", channels << (stage - 1), stride, signs=signs)
        layers.join("end", [layers.last], ("act", "norm") if signs else ("act",))
        layers.conv("features", FEATURES, 1, steps=("norm", "act", "pool"))

    def _nodes(self, image: ImageShape) -> int:
        chosen: int | None = self.options.nodes
        return chosen or (LARGE_NODES if self.form(image) == "large" else SMALL_NODES)


def generate(values: Mapping[str, Any], nodes: int, seed: int) -> nx.DiGraph:
    """The random graph that the choices name."""
    if values["generator"] == "er":
        return erdos_renyi(nodes, values["er.p"], seed=seed)
    if values["generator"] == "ba":
        return barabasi_albert(nodes, values["ba.m"], seed=seed)
    return watts_strogatz(nodes, values["ws.k"], values["ws.p"], seed=seed)


def _wire(
    layers: Layers, graph: nx.DiGraph, stage: str, channels: int, stride: int, *, signs: bool
) -> None:
    """One stage, from the layers' last group to a new one of the stage's name."""
    entry = layers.last
    steps: tuple[Step, ...] = ("act", "depthwise", "norm") if signs else ("act", "depthwise")
    outputs: dict[int, str] = {}
    for node in graph:
        name = f"{stage}n{node}"
        before = [outputs[one] for one in sorted(graph.predecessors(node))]
        if before:
            layers.join(name, before, steps, gate=True)
        else:
            layers.join(name, [entry], steps, stride=stride)
        outputs[node] = layers.conv(f"{name}c", channels, 1, steps=("norm",))
    layers.join(stage, [outputs[node] for node in graph if not graph.out_degree(node)], ())
