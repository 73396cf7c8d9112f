"""Regularised evolution: the best of a few parents is mutated, and the oldest dies.

Several objectives: the best of a sample has the lowest non-domination rank in the population,
and among equals the largest crowding distance, as in NSGA-II's tournament.
"""

from __future__ import annotations

import numpy as np
from pydantic import PositiveInt

from search.algorithms.base import ALGORITHMS, Algorithm, Values
from search.pareto import Point, as_losses, crowding, ranks
from wiring.config import Config


class Options(Config):
    """`population` trials live at once; a parent is the best of `sample` of them.

    The paper's 100 and 25 suit thousands of trials, the defaults suit dozens.
    """

    population: PositiveInt = 10
    sample: PositiveInt = 4


@ALGORITHMS.register("evolution")
class RegularisedEvolution(Algorithm):
    """Aging evolution with the space's mutations; the first population is drawn at random."""

    name = "evolution"
    paper = "Real et al.: Regularized Evolution for Image Classifier Architecture Search, AAAI 2019"
    use = (
        "Where a neighbour of a good network is likely to be good, and trials are many. With "
        "few trials take tpe."
    )
    Options = Options

    def _propose(self, number: int, rng: np.random.Generator) -> Values:
        living = self.told[-self.options.population :]
        if number < self.options.population or not living:
            return self._random(rng)
        size = min(self.options.sample, len(living))
        drawn = rng.choice(len(living), size=size, replace=False)
        order = self._order(as_losses([values for _, values in living], self.directions))
        parent, _ = living[min(map(int, drawn), key=lambda index: order[index])]
        return self.mutate(dict(self.asked[parent]), rng)

    @staticmethod
    def _order(losses: list[Point]) -> list[tuple[int, float]]:
        """A sort key per point: non-domination rank, then most room first."""
        rank = ranks(losses)
        room = [0.0] * len(losses)
        for level in set(rank):
            members = [index for index, one in enumerate(rank) if one == level]
            for index, distance in zip(
                members, crowding([losses[index] for index in members]), strict=True
            ):
                room[index] = distance
        return [(one, -distance) for one, distance in zip(rank, room, strict=True)]
