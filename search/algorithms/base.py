"""An algorithm proposes points of a space and learns from what they were worth. No Ray in it.

A proposal depends on the seed, its number and the asks and tells before it, on nothing else: an
algorithm that replays a journal goes on exactly as one that was never interrupted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from search.pareto import Direction, Point
from search.spaces.base import only_value, sample
from wiring.config import Config, NoOptions, parse
from wiring.registry import Registry

ATTEMPTS = 8

Values = dict[str, Any]
Mutate = Callable[[Values, np.random.Generator], Values]


class Algorithm(ABC):
    """Ask for points, tell what they were worth; any number may be on their way at once.

    A subclass proposes from `asked`, the points by trial number, and `told`, the trials that
    succeeded, as (number, objectives) in the order in which they were told.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    use: ClassVar[str] = ""
    Options: ClassVar[type[Config]] = NoOptions

    def __init__(
        self,
        choices: dict[str, BaseDistribution],
        directions: tuple[Direction, ...],
        *,
        seed: int,
        options: dict[str, Any],
        mutate: Mutate,
    ) -> None:
        self.choices = choices
        self.directions = directions
        self.seed = seed
        self.mutate = mutate
        self.options: Any = parse(self.Options, options, where=f"algorithm {self.name}")
        self.asked: dict[int, Values] = {}
        self.told: list[tuple[int, Point]] = []

    def ask(self, number: int) -> Values:
        """A value for every choice, for trial `number` = 0, 1, 2, …

        A point asked for before is drawn again a few times: trials are reproducible, so that
        its second trial would tell nothing.
        """
        assert number not in self.asked, f"trial {number} was asked for twice"
        for attempt in range(ATTEMPTS):
            values = self._propose(number, np.random.default_rng([self.seed, number, attempt]))
            if values not in self.asked.values():
                break
        self.asked[number] = values
        return dict(values)

    def restore(self, number: int, params: Values) -> None:
        """Repeat an ask of an earlier life, with what it gave then."""
        assert number not in self.asked, f"trial {number} was asked for twice"
        self.asked[number] = dict(params)

    def tell(self, number: int, values: tuple[float, ...] | None) -> None:
        """The objectives of trial `number`; None, or one that is not finite, is a failure."""
        assert number in self.asked, f"trial {number} was never asked for"
        if values is not None and all(math.isfinite(value) for value in values):
            self.told.append((number, tuple(values)))

    @abstractmethod
    def _propose(self, number: int, rng: np.random.Generator) -> Values:
        """A value for every choice; all randomness comes from `rng`."""

    def _random(self, rng: np.random.Generator) -> Values:
        return {key: sample(choice, rng) for key, choice in self.choices.items()}


class OptunaAlgorithm(Algorithm):
    """Asks a sampler of Optuna's, through a study in memory.

    Every ask gets a fresh sampler, whose seed comes from (seed, number): what a sampler knows
    then lies in the study's trials alone, which a replay of the journal rebuilds.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open = {key: one for key, one in self.choices.items() if not one.single()}
        self._fixed = {key: only_value(c) for key, c in self.choices.items() if c.single()}
        self._trials: dict[int, optuna.Trial] = {}
        with _quiet():
            self._study = optuna.create_study(
                storage=optuna.storages.InMemoryStorage(), directions=list(self.directions)
            )

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler:
        """A new sampler whose randomness is `seed` alone."""

    def restore(self, number: int, params: Values) -> None:
        super().restore(number, params)
        self._study.enqueue_trial({key: params[key] for key in self._open})
        self._ask(number, seed=0)

    def tell(self, number: int, values: tuple[float, ...] | None) -> None:
        super().tell(number, values)
        trial = self._trials.pop(number)
        if self.told and self.told[-1][0] == number:
            self._study.tell(trial, list(self.told[-1][1]))
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _propose(self, number: int, rng: np.random.Generator) -> Values:
        if number in self._trials:  # a point drawn before
            self._study.tell(self._trials.pop(number), state=TrialState.FAIL)
        drawn = self._ask(number, seed=int(rng.integers(2**32))).params
        return {key: drawn[key] if key in drawn else self._fixed[key] for key in self.choices}

    def _ask(self, number: int, *, seed: int) -> optuna.Trial:
        self._study.sampler = self._sampler(seed)
        trial = self._study.ask(self._open)
        # Drawn even where every value is given: NSGA-II counts its generations in passing.
        _ = trial.relative_params
        self._trials[number] = trial
        return trial


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's line on each study it creates."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


ALGORITHMS: Registry[Algorithm] = Registry(
    "algorithm", package="search.algorithms", group="wiring.algorithms"
)
