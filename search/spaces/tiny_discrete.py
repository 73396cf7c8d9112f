"""The 41k-parameter classifier in discrete time: 800 nodes, each joined to all, five steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from search.spaces.base import SPACES
from search.spaces.tiny import OUTPUTS, SMALLEST_SIDE, Tiny
from wiring.config import Config, NoOptions
from wiring.errors import ConfigError
from wiring.graph.topology import Bundle, Discrete, Dynamics, NodeGroup, Scope, Topology
from wiring.network import HeadSpec, ImageShape, ModelSpec, StemSpec

GROUPS = {"in": 32, "hidden": 668, "out": OUTPUTS}
STEPS = 5


@SPACES.register("tiny-discrete")
class TinyDiscrete(Tiny):
    """A graph of 800 nodes with cycles that runs for five steps: 32,000 edges, 41k parameters.

    ReLU, depthwise 3x3, edges, instance norm in every step; each of the 800 nodes may read each,
    itself too. The stem feeds the first 32, the last 100 are read out.
    """

    name = "tiny-discrete"
    use = (
        "For wirings that may run in circles, over a few steps in time. Where they may not, "
        "tiny is the same size and faster."
    )
    Options: ClassVar[type[Config]] = NoOptions
    dynamics: ClassVar[Dynamics] = Discrete(steps=STEPS)

    def build(self, values: Mapping[str, Any], image: ImageShape, classes: int) -> ModelSpec:
        """One scope over all pairs of nodes."""
        if image.side < SMALLEST_SIDE:
            raise ConfigError(
                f"space {self.name} needs images of at least {SMALLEST_SIDE} pixels a side, "
                f"got {image.side}"
            )
        groups = tuple(
            NodeGroup(
                name=name,
                size=size,
                steps=("act", "depthwise"),
                receive=("norm",),
                norm="instance",
                stage=stage,
            )
            for stage, (name, size) in enumerate(GROUPS.items())
        )
        bundles = tuple(Bundle(name=n, sources=tuple(GROUPS), destination=n) for n in GROUPS)
        return self.spec(
            values,
            image,
            classes,
            stem=StemSpec(kind="tiny"),
            topology=Topology(
                groups=groups,
                bundles=bundles,
                scopes=(Scope(name="all", bundles=tuple(GROUPS), budget=values["edges"]),),
                dynamics=self.dynamics,
            ),
            head=HeadSpec(kind="crop"),
        )
