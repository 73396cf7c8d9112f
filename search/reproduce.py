"""Runs recipes as studies, one trial per seed, and sets their results beside the paper's.

What has been trained stays: studies of the same recipe and settings under the same runs
directory are found again, so that a stopped command goes on, and one that asks for more seeds
trains only those.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search import driver
from search.config import StudyConfig
from search.recipe import Recipe, digest
from search.records import RECIPE
from search.study import Study
from wiring.errors import WiringError
from workers.files import write_json
from workers.trial import TrialResult

COSTS = ("live_edges", "multiplications", "additions", "xnors", "energy", "weight_bits")


@dataclass(frozen=True)
class How:
    """With what a recipe runs. `jobs` trials at a time; one runs in this very process, unless
    `address` names a Ray cluster; None leaves it to Ray."""

    jobs: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    address: str | None = None
    token_file: Path | None = None
    tracking_uri: str | None = None

    @property
    def here(self) -> bool:
        return self.jobs == 1 and self.address is None


@dataclass
class Reproduction:
    """What has come of one recipe. `results` are finished trials by seed, `problems` say why
    there are fewer than asked for."""

    recipe: Recipe
    config: StudyConfig
    scale: float
    results: dict[int, TrialResult] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    studies: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def seeds(self) -> list[int]:
        """The seeds asked for."""
        return list(self.config.fix["seed"])

    @property
    def complete(self) -> bool:
        return len(self.results) == len(self.seeds)

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies in per cent."""
        return [100 * (one.test_accuracy or 0.0) for one in self.results.values()]

    @property
    def mean(self) -> float | None:
        """Mean test accuracy in per cent."""
        return statistics.fmean(self.accuracies) if self.results else None

    @property
    def spread(self) -> float | None:
        """Standard deviation between seeds (n - 1) in percentage points, None for one seed."""
        return statistics.stdev(self.accuracies) if len(self.results) > 1 else None

    @property
    def seconds(self) -> float | None:
        """Mean time of a seed."""
        taken = [one.seconds for one in self.results.values()]
        return statistics.fmean(taken) if taken else None

    @property
    def costs(self) -> dict[str, float]:
        """Means over the seeds, of the networks that were tested."""
        found = list(self.results.values())
        return {n: statistics.fmean(one.costs[n] for one in found) for n in COSTS if found}

    @property
    def epochs(self) -> int | None:
        epochs: int | None = self.config.train.get("epochs")
        return epochs

    @property
    def deviations(self) -> list[str]:
        """All that differs from the paper's setting."""
        return [*self.recipe.changes(self.config), *self.recipe.deviations]

    def as_record(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        published = self.recipe.published
        return {
            "recipe": self.recipe.name,
            "table": self.recipe.table,
            "title": self.recipe.title,
            "paper": self.recipe.paper,
            "published": published.to_dict() if published else None,
            "scale": self.scale,
            "epochs": self.epochs,
            "seeds": self.seeds,
            "results": {
                str(seed): {
                    "test_accuracy": one.test_accuracy,
                    "val_accuracy": one.val_accuracy,
                    "best_epoch": one.best_epoch,
                    "seconds": one.seconds,
                }
                for seed, one in sorted(self.results.items())
            },
            "mean": self.mean,
            "spread": self.spread,
            "costs": self.costs,
            "seconds_per_seed": self.seconds,
            "deviations": self.deviations,
            "problems": self.problems,
            "studies": self.studies,
        }


def check(recipe: Recipe, config: StudyConfig, tracking_uri: str | None) -> None:
    """Refuse what cannot run before anything does. Raises WiringError with the recipe's name."""
    try:
        driver.check(config, tracking_uri)
    except WiringError as error:
        raise type(error)(f"recipe {recipe.name}: {error}") from None


def run(recipe: Recipe, config: StudyConfig, scale: float, runs: Path, how: How) -> Reproduction:
    """Train the seeds that are missing, then collect all. Raises WiringError for a broken study.

    What keeps a study from starting, missing data above all, becomes a problem of the result.
    """
    outcome = Reproduction(recipe, config, scale)
    for study in _studies(outcome, runs):
        if not study.finished and not outcome.interrupted:
            study.config = study.config.replace(
                concurrent=how.jobs,
                cpus_per_trial=how.cpus_per_trial,
                gpus_per_trial=how.gpus_per_trial,
            )
            try:
                ended = driver.drive(
                    study,
                    address=how.address,
                    token_file=how.token_file,
                    tracking_uri=how.tracking_uri,
                    here=how.here,
                )
            except WiringError as error:
                outcome.problems.append(str(error))
            else:
                outcome.interrupted = ended.interrupted
        _collect(outcome, study)
    return outcome


def collect(recipe: Recipe, config: StudyConfig, scale: float, runs: Path) -> Reproduction:
    """What is on disk of a recipe already; nothing is trained or created."""
    outcome = Reproduction(recipe, config, scale)
    for study in _known(outcome, runs):
        _collect(outcome, study)
    return outcome


def _studies(outcome: Reproduction, runs: Path) -> list[Study]:
    """The studies that cover the seeds, the last one new where some are covered by none."""
    studies = _known(outcome, runs)
    covered = {seed for study in studies for seed in study.config.fix["seed"]}
    missing = [seed for seed in outcome.seeds if seed not in covered]
    if missing:
        config = outcome.config.replace(
            fix={**outcome.config.fix, "seed": missing}, trials=len(missing)
        )
        name = f"{_prefix(outcome)}{'-'.join(map(str, missing))}"
        studies.append(Study.create(runs, name, config, kind="reproduce"))
    for study in studies:
        if not (study.directory / RECIPE).exists():
            write_json(study.directory / RECIPE, _note(outcome))
    return studies


def _known(outcome: Reproduction, runs: Path) -> list[Study]:
    found = sorted(runs.glob(f"{_prefix(outcome)}*/study.json"))
    studies = [Study.load(path.parent) for path in found]
    return [s for s in studies if set(s.config.fix["seed"]) & set(outcome.seeds)]


def _prefix(outcome: Reproduction) -> str:
    return f"{outcome.recipe.name}-{digest(outcome.config)}-seeds-"


def _note(outcome: Reproduction) -> dict[str, Any]:
    """What stands beside the study for MLflow and for whoever finds it."""
    record = outcome.as_record()
    kept = ("recipe", "table", "title", "paper", "published", "scale", "deviations")
    return {key: record[key] for key in kept}


def _collect(outcome: Reproduction, study: Study) -> None:
    """Take over the trials of the seeds asked for."""
    if study.directory.exists():
        outcome.studies.append(study.name)
    for trial in study.trials.values():
        seed, result = int(trial.params["seed"]), trial.result
        if seed not in outcome.seeds:
            continue
        if result is not None and result.state == "finished":
            outcome.results[seed] = result
        elif trial.ended:
            outcome.problems.append(f"seed {seed} {trial.state}: {trial.reason}")
