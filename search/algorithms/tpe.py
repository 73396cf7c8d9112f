"""Tree-structured Parzen estimator: sample where good trials are denser than bad ones."""

from __future__ import annotations

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from pydantic import NonNegativeInt, PositiveInt

from search.algorithms.base import ALGORITHMS, OptunaAlgorithm
from wiring.config import Config


class Options(Config):
    """The first `startup` trials are random; `candidates` are weighed for each later one.
    `multivariate`: choices are drawn together, and not each by itself."""

    startup: NonNegativeInt = 10
    candidates: PositiveInt = 24
    multivariate: bool = True


@ALGORITHMS.register("tpe")
class TreeParzen(OptunaAlgorithm):
    """Optuna's TPE; trials on their way count as bad ones, so that concurrent asks spread."""

    name = "tpe"
    paper = "Bergstra et al.: Algorithms for Hyper-Parameter Optimization, NeurIPS 2011"
    use = (
        "The first to take: it learns from a few dozen trials, with one objective or several. "
        "Beyond hundreds of trials nsga2 spreads better over the front."
    )
    Options = Options

    def _sampler(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(
                n_startup_trials=self.options.startup,
                n_ei_candidates=self.options.candidates,
                multivariate=self.options.multivariate,
                constant_liar=True,
                seed=seed,
            )
