"""The 41k-parameter classifier: 800 nodes in five blocks that share one pool of edges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from optuna.distributions import BaseDistribution, IntDistribution

from search.spaces.base import SPACES, Space, batch_size, common_choices, common_defaults
from wiring.config import Config
from wiring.errors import ConfigError
from wiring.graph.topology import Bundle, NodeGroup, Scope, Skip, Topology
from wiring.network import HeadSpec, ImageShape, ModelSpec, StemSpec

BLOCKS = (32, 192, 192, 192, 192)
OUTPUTS = 100
EDGES = 32_000
SMALLEST_SIDE = 5  # the stem leaves a quarter, and a single pixel cannot be normalised


class TinyOptions(Config):
    """`pool`, what competes for the edge budget: `usable` edges only, or as in the `released` code
    of the paper the whole matrix of 800 x 800 weights, more than half of which no pass reads."""

    pool: Literal["usable", "released"] = "usable"


@SPACES.register("tiny")
class Tiny(Space):
    """A static graph of 800 nodes at a quarter of the image's side, 32,000 edges, 41k parameters.

    The 100 outputs are the last nodes of the last block themselves, which also receive edges
    from that block: what they got before (the skip) and that are read out together.
    """

    name = "tiny"
    paper = "Wortsman, Farhadi, Rastegari: Discovering Neural Wirings, NeurIPS 2019"
    use = (
        "The small classifiers of Discovering Neural Wirings: minutes on a CPU. For larger "
        "budgets take mobilenet-graph."
    )
    Options: ClassVar[type[Config]] = TinyOptions

    def choices(self, image: ImageShape) -> dict[str, BaseDistribution]:
        """The edge budget from a quarter to twice the paper's, and the common choices."""
        return {"edges": IntDistribution(8_000, 64_000, log=True), **common_choices()}

    def defaults(self, image: ImageShape) -> dict[str, Any]:
        """The paper's 32,000 edges."""
        return {"edges": EDGES, **common_defaults()}

    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """Batches of 512 and a tenth of the rate at 1/2 and 3/4 of the epochs (80, 120 of 160)."""
        milestones = {round(epochs * share) for share in (0.5, 0.75)}
        return {
            "batch_size": batch_size(images, 512),
            "weight_decay": 1e-4,
            "momentum": 0.9,
            "schedule": "step",
            "milestones": sorted(milestones & set(range(1, epochs))),
            "decay": 0.1,
        }

    def build(self, values: Mapping[str, Any], image: ImageShape, classes: int) -> ModelSpec:
        """Edges run from each block to all later ones, and from the last to the outputs."""
        if image.side < SMALLEST_SIDE:
            raise ConfigError(
                f"space tiny needs images of at least {SMALLEST_SIDE} pixels a side, "
                f"got {image.side}"
            )
        names = [f"b{number}" for number in range(len(BLOCKS))]
        blocks = [
            NodeGroup(
                name=name,
                size=size,
                steps=("norm", "act", "depthwise"),
                norm="instance",
                stage=number,
            )
            for number, (name, size) in enumerate(zip(names, BLOCKS, strict=True))
        ]
        out = NodeGroup(name="out", size=OUTPUTS, stage=len(BLOCKS))
        bundles = [
            Bundle(name=name, sources=tuple(names[:number]), destination=name)
            for number, name in enumerate(names)
            if number
        ]
        bundles.append(Bundle(name="out", sources=(names[-1],), destination="out"))
        scope = Scope(name="all", bundles=tuple(b.name for b in bundles), budget=values["edges"])
        if self.options.pool == "released":
            scope = scope.replace(unusable=sum(BLOCKS) ** 2 - usable_edges())
        topology = Topology(
            groups=(*blocks, out),
            bundles=tuple(bundles),
            scopes=(scope,),
            skips=(Skip(source=names[-1], destination="out", start=BLOCKS[-1] - OUTPUTS),),
        )
        return self.spec(
            values,
            image,
            classes,
            stem=StemSpec(kind="tiny"),
            topology=topology,
            head=HeadSpec(kind="crop"),
        )


def usable_edges() -> int:
    """Edges that a forward pass reads: from each block to all later ones, from the last to out."""
    forward = sum(size * sum(BLOCKS[:place]) for place, size in enumerate(BLOCKS))
    return forward + BLOCKS[-1] * OUTPUTS
