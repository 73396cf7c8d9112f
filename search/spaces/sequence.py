"""Images read row by row: a recurrent network whose wiring is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from pydantic import PositiveInt

from search.spaces.base import SPACES, Space, batch_size, common_choices, common_defaults, exact
from wiring.config import Config
from wiring.graph.topology import Bundle, Discrete, NodeGroup, Scope, Skip, Topology
from wiring.network import HeadSpec, ImageShape, ModelSpec, StemSpec


class Options(Config):
    """How many nodes keep the state (`hidden`), and how many of a kind are read out (`outputs`)."""

    hidden: PositiveInt = 128
    outputs: PositiveInt = 64


@SPACES.register("sequence")
class Sequence(Space):
    """A recurrent graph that sees one row of the image a step, and must remember the rest.

    Input nodes take a row, one node per channel and column. Hidden and output nodes add what they
    read of them and of one another to what they had (a skip, without which early rows are soon
    forgotten) and a bias, and bend that by tanh. A linear layer reads the output nodes after as
    many steps as there are rows. The last row reaches no output node.
    """

    name = "sequence"
    paper = "Wortsman, Farhadi, Rastegari: Discovering Neural Wirings, NeurIPS 2019"
    use = (
        "For images read row by row by a recurrent wiring. Where the whole image is seen at "
        "once, take tiny-discrete or any static space."
    )
    Options = Options

    def choices(self, image: ImageShape) -> dict[str, BaseDistribution]:
        """The share of edges that lives, and the common choices."""
        return {"density": FloatDistribution(0.05, 1.0, log=True), **common_choices()}

    def defaults(self, image: ImageShape) -> dict[str, Any]:
        """A quarter of the edges."""
        return {"density": 0.25, **common_defaults()}

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """Cosine from 0.1 with gradients clipped to norm 1, without which long products explode."""
        return {
            "batch_size": batch_size(images, 128),
            "weight_decay": 1e-5,
            "momentum": 0.9,
            "schedule": "cosine",
            "clip_norm": 1.0,
        }

    def augments(self, image: ImageShape) -> bool:
        """Never: a flip turns sequences around."""
        return False

    def build(self, values: Mapping[str, Any], image: ImageShape, classes: int) -> ModelSpec:
        """One scope over the edges into hidden and output nodes."""
        sizes = {
            "rows": image.channels * image.side,
            "hidden": self.options.hidden,
            "out": self.options.outputs,
        }
        groups = tuple(
            NodeGroup(name=name, size=size, receive=("bias", "tanh") if stage else (), stage=stage)
            for stage, (name, size) in enumerate(sizes.items())
        )
        states = tuple(sizes)[1:]
        bundles = tuple(Bundle(name=n, sources=tuple(sizes), destination=n) for n in states)
        pool = sum(sizes.values()) * sum(sizes[name] for name in states)
        budget = math.ceil(exact(values["density"]) * pool)
        return self.spec(
            values,
            image,
            classes,
            stem=StemSpec(kind="identity"),
            topology=Topology(
                groups=groups,
                bundles=bundles,
                scopes=(Scope(name="all", bundles=states, budget=budget),),
                skips=tuple(Skip(source=name, destination=name) for name in states),
                dynamics=Discrete(steps=image.side, feed="rows"),
            ),
            head=HeadSpec(kind="linear"),
        )
