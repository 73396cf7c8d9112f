"""NSGA-II: parents by non-domination rank and crowding, children by crossover and mutation."""

from __future__ import annotations

from typing import Annotated

from optuna.samplers import BaseSampler, NSGAIISampler
from pydantic import Field

from search.algorithms.base import ALGORITHMS, OptunaAlgorithm
from wiring.config import Config


class Options(Config):
    """`population` trials make a generation, the first of them random. `crossover`: how likely a
    point has two parents."""

    population: Annotated[int, Field(ge=2)] = 12
    crossover: Annotated[float, Field(ge=0, le=1)] = 0.9


@ALGORITHMS.register("nsga2")
class Nsga2(OptunaAlgorithm):
    """Optuna's NSGA-II, a genetic search for a whole Pareto front."""

    name = "nsga2"
    paper = "Deb et al.: A Fast and Elitist Multiobjective Genetic Algorithm, IEEE TEC 2002"
    use = (
        "Where the front between accuracy and costs is wanted and trials are in the hundreds. "
        "With fewer take tpe."
    )
    Options = Options

    def _sampler(self, seed: int) -> BaseSampler:
        return NSGAIISampler(
            population_size=self.options.population,
            crossover_prob=self.options.crossover,
            seed=seed,
        )
