"""Every trial drawn alone, uniformly over the choices."""

from __future__ import annotations

import numpy as np

from search.algorithms.base import ALGORITHMS, Algorithm, Values


@ALGORITHMS.register("random")
class RandomSearch(Algorithm):
    """Independent uniform draws, on the logarithmic scale where a choice has one."""

    name = "random"
    paper = "Bergstra, Bengio: Random Search for Hyper-Parameter Optimization, JMLR 2012"
    use = (
        "The baseline, and good where many choices hardly matter. tpe learns from what came before."
    )

    def _propose(self, number: int, rng: np.random.Generator) -> Values:
        return self._random(rng)
