"""Holds the table of latencies against networks that it has not seen: `wiring profile --check`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from search.budget import apply_budget
from search.config import BudgetConfig
from search.spaces.base import SPACES
from wiring.compiled import compile as compile_network
from wiring.compiled.tuning import measure, with_threads
from wiring.network import ImageShape, Network, build_network
from workers.latency import Predictor, Profile

# Space, its options, channels and side of the images, and the operators to try.
NETWORKS: tuple[tuple[str, dict[str, Any], tuple[int, int], tuple[str, ...]], ...] = (
    ("mobilenet-graph", {"size": "quarter"}, (1, 32), ("dense", "xnor", "adder", "bwn")),
    ("mobilenet-graph", {"size": "half"}, (3, 32), ("dense",)),
    ("tiny", {}, (3, 32), ("dense", "adder")),
    ("lenet5-bn", {}, (1, 32), ("dense", "xnor")),
)
DENSITIES = (0.05, 0.2, 0.7)


class Checked(NamedTuple):
    """One network: what it is, and its milliseconds as predicted and as measured."""

    network: str
    density: float
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to the measurement; signed."""
        return self.predicted_ms / self.measured_ms - 1


def held_out() -> Iterator[tuple[str, float, Network]]:
    """(name, density, network): untrained networks of the spaces that are installed."""
    for space_name, options, (channels, side), ops in NETWORKS:
        space, image = SPACES.get(space_name)(options), ImageShape(channels=channels, side=side)
        for op, density in itertools.product(ops, DENSITIES):
            values = {**space.defaults(image), "op": op, "rule": "random"}
            model = apply_budget(space.build(values, image, 10), BudgetConfig(density=density))
            size = "".join(f" {option}" for option in options.values())
            yield f"{space_name}{size} {op}", density, build_network(model).eval()


def check(profile: Profile, progress: Callable[[str], None] | None = None) -> list[Checked]:
    """Prediction and measurement of every network held out, compiled anew, nothing remembered."""
    known, rows = Predictor(profile), []
    for name, density, network in held_out():
        if progress:
            progress(f"{name} {density:g}")
        predicted = known.predict_ms(network)
        image = network.spec.image
        x = torch.randn(profile.batch, image.channels, image.side, image.side)
        with with_threads(profile.threads):
            compiled = compile_network(network, batch=profile.batch, cache=False)
            call = partial(compiled, x)
            # Two of a kind, which are called in turn until they have had their time.
            us = measure({"once": call, "again": call})
        rows.append(Checked(name, density, predicted, min(us.values()) / 1000))
    return rows
