"""Every combination of the choices, one after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import PositiveInt

from search.algorithms.base import ALGORITHMS, Algorithm, Values
from wiring.config import Config


class GridOptions(Config):
    """A range with more than `levels` values is tried at that many of them, its ends included."""

    levels: PositiveInt = 3


@ALGORITHMS.register("grid")
class Grid(Algorithm):
    """Every combination of the choices; the last choice varies fastest, and all come round again.

    Seed 0 begins with the first combination, another seed somewhere else.
    """

    name = "grid"
    use = (
        "Where every combination of a few values shall be tried once, for a table. Where "
        "there are too many, take random or tpe."
    )
    Options = GridOptions

    def _propose(self, number: int, rng: np.random.Generator) -> Values:
        levels = {key: _levels(one, self.options.levels) for key, one in self.choices.items()}
        size = math.prod(len(values) for values in levels.values())
        begin = int(np.random.default_rng(self.seed).integers(size)) if self.seed else 0
        rest = (begin + number) % size
        values = {}
        for key in reversed(levels):
            rest, position = divmod(rest, len(levels[key]))
            values[key] = levels[key][position]
        return {key: values[key] for key in self.choices}


def _levels(choice: BaseDistribution, count: int) -> list[Any]:
    if isinstance(choice, CategoricalDistribution):
        return list(choice.choices)
    assert isinstance(choice, FloatDistribution | IntDistribution)
    low, high = float(choice.low), float(choice.high)
    if count == 1:
        spread = np.array([math.sqrt(low * high) if choice.log else (low + high) / 2])
    else:
        spread = np.geomspace(low, high, count) if choice.log else np.linspace(low, high, count)
    inside = (min(max(float(value), low), high) for value in spread)
    if isinstance(choice, IntDistribution):
        if choice.high - choice.low < count:
            return list(range(choice.low, choice.high + 1))
        return list(dict.fromkeys(round(value) for value in inside))
    return list(dict.fromkeys(inside))
