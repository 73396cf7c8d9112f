"""A graph that the user brings, as node-link JSON or GraphML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from pydantic import PositiveInt

from search.spaces.base import (
    SPACES,
    Space,
    batch_size,
    common_choices,
    common_defaults,
    exact,
)
from wiring.config import Config
from wiring.errors import TopologyError
from wiring.graph.convert import from_networkx, read_graph
from wiring.graph.topology import Discrete, NodeGroup, Scope, Step, Topology
from wiring.network import HeadSpec, ImageShape, ModelSpec, StemSpec

NODE: tuple[Step, ...] = ("norm", "act", "depthwise")
OUTPUT: tuple[Step, ...] = ("norm", "act")


class Options(Config):
    """`path` names the file: `.json` or `.graphml`. `stem_stride` shrinks the image first."""

    path: Path
    stem_stride: PositiveInt = 1


@SPACES.register("graph-file")
class GraphFile(Space):
    """Your own directed acyclic graph: nodes are channels, the file's edges the usable ones.

    A 3x3 convolution feeds the nodes without predecessors, a linear layer reads the pooled
    nodes without successors. A graph that was exported from a network keeps that network's
    groups, scopes and node functions, and may have cycles where it runs over time.
    """

    name = "graph-file"
    paper = "Wortsman, Farhadi, Rastegari: Discovering Neural Wirings, NeurIPS 2019"
    use = (
        "For a wiring of one's own: any directed acyclic graph from a file. Where the family "
        "is published, take its space."
    )
    Options = Options

    def choices(self, image: ImageShape) -> dict[str, BaseDistribution]:
        """The share of usable edges that lives in every scope, and the common choices."""
        return {"density": FloatDistribution(0.05, 1.0, log=True), **common_choices()}

    def defaults(self, image: ImageShape) -> dict[str, Any]:
        """Half of the edges."""
        return {"density": 0.5, **common_defaults()}

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """Cosine from 0.1, batches of at most 128."""
        return {
            "batch_size": batch_size(images, 128),
            "weight_decay": 1e-4,
            "momentum": 0.9,
            "schedule": "cosine",
        }

    def build(self, values: Mapping[str, Any], image: ImageShape, classes: int) -> ModelSpec:
        """Raises TopologyError where the file cannot be read or breaks a rule of graphs."""
        graph = read_graph(self.options.path)
        try:
            brought = from_networkx(graph)
        except TopologyError as error:
            raise TopologyError(f"{self.options.path}: {error}") from None
        density = exact(values["density"])
        topology = Topology(
            groups=tuple(_with_steps(group, brought) for group in brought.groups),
            bundles=brought.bundles,
            scopes=tuple(
                Scope(
                    name=scope.name,
                    bundles=scope.bundles,
                    budget=math.ceil(density * brought.usable_edges(scope)),
                )
                for scope in brought.scopes
            ),
            skips=brought.skips,
            dynamics=brought.dynamics,
        )
        rows = isinstance(brought.dynamics, Discrete) and brought.dynamics.feed == "rows"
        return self.spec(
            values,
            image,
            classes,
            stem=StemSpec(kind="identity")
            if rows
            else StemSpec(kind="conv", stride=self.options.stem_stride),
            topology=topology,
            head=HeadSpec(kind="linear"),
        )


def _with_steps(group: NodeGroup, brought: Topology) -> NodeGroup:
    """The group with the usual node function, unless the graph says what its nodes do."""
    if any(one.steps or one.receive for one in brought.groups):
        return group
    return group.replace(steps=OUTPUT if group is brought.output else NODE)
