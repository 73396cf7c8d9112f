"""The trials that a figure is made of, read from disk as far as they have got."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from search.figures.chart import Floats
from search.records import Row, StudyRecords, TrialRecords
from search.study import find_study, find_trial
from wiring.config import Component
from wiring.errors import StudyError
from wiring.graph.topology import Topology
from workers.evaluate import read_trained_spec
from workers.files import read_json, read_lines
from workers.spec import TrialSpec


class Run:
    """One trial, whatever its state. `study` is the name of the study it belongs to, if any."""

    def __init__(
        self, directory: Path, *, study: StudyRecords | None = None, state: str | None = None
    ) -> None:
        self.directory = directory
        self.study = study
        self._state = state

    @property
    def name(self) -> str:
        """`study/0003`; outside of a study the directory's name."""
        return f"{self.study.name}/{self.directory.name}" if self.study else self.directory.name

    @cached_property
    def spec(self) -> TrialSpec:
        """With the network that training ended with. Raises StudyError or ConfigError."""
        return read_trained_spec(self.directory)

    @property
    def topology(self) -> Topology:
        return self.spec.model.topology

    @cached_property
    def rows(self) -> list[Row]:
        """The metrics of every epoch so far."""
        path = self.directory / "metrics.jsonl"
        return read_lines(path) if path.exists() else []

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """How it ended; None where it was stopped, failed or still runs."""
        path = self.directory / "result.json"
        result: dict[str, Any] | None = read_json(path) if path.exists() else None
        return result

    @property
    def state(self) -> str:
        """finished, stopped, diverged, failed, or running."""
        return self._state or (self.result["state"] if self.result else "running")

    @property
    def method(self) -> str:
        """`operator · rule`, with the options that were given."""
        return f"{titled(self.spec.model.op)} · {titled(self.spec.model.rule)}"

    @property
    def accuracy(self) -> float:
        """The best validation accuracy so far, NaN before the first epoch."""
        if self.result and self.result["val_accuracy"] is not None:
            return float(self.result["val_accuracy"])
        values = self.column("val_accuracy")[1]
        return float(np.nanmax(values)) if np.isfinite(values).any() else math.nan

    def column(self, key: str) -> tuple[Floats, Floats]:
        """(epochs, values) of a metric; NaN where an epoch has none."""
        values = [row.get(key) for row in self.rows]
        return (
            np.array([row["epoch"] for row in self.rows], np.float64),
            np.array([math.nan if v is None else v for v in values], np.float64),
        )

    @cached_property
    def snapshots(self) -> dict[int, Path]:
        """The files with the wiring after each epoch, 0 before training."""
        paths = sorted((self.directory / "wirings").glob("epoch-*.safetensors"))
        return {int(path.stem.partition("-")[2]): path for path in paths}

    @property
    def shown_epoch(self) -> int:
        """The best epoch, or the last one of a trial that did not finish. Raises StudyError."""
        best = int(self.result["best_epoch"]) if self.result else 0
        if best in self.snapshots and best:
            return best
        if not self.snapshots:
            raise StudyError(f"{self.directory / 'wirings'} holds no snapshot of a wiring")
        return max(self.snapshots)

    def snapshot(self, epoch: int) -> dict[str, torch.Tensor]:
        """`<scope>.edges` and `<scope>.weights` after an epoch. Raises StudyError."""
        try:
            tensors: dict[str, torch.Tensor] = load_file(self.snapshots[epoch])
        except (SafetensorError, OSError) as error:
            raise StudyError(f"{self.snapshots[epoch]} cannot be read: {error}") from None
        return tensors

    def masks(self, epoch: int) -> dict[str, torch.Tensor]:
        """The live edges after an epoch by scope, flat bool [E]."""
        tensors, masks = self.snapshot(epoch), {}
        for scope in self.topology.scopes:
            shapes = [self.topology.weight_shape(self.topology.bundle(n)) for n in scope.bundles]
            mask = torch.zeros(sum(math.prod(shape) for shape in shapes), dtype=torch.bool)
            mask[tensors[f"{scope.name}.edges"]] = True
            masks[scope.name] = mask
        return masks

    @cached_property
    def usable(self) -> dict[str, int]:
        """How many edges each scope may choose from."""
        return {scope.name: self.topology.usable_edges(scope) for scope in self.topology.scopes}

    @cached_property
    def edge_space(self) -> tuple[Any, ...]:
        """Equal for trials whose wirings choose from the same edges."""
        bundles = [
            (scope.name, self.topology.weight_shape(bundle), bundle.model_dump_json(exclude={"op"}))
            for scope in self.topology.scopes
            for bundle in map(self.topology.bundle, scope.bundles)
        ]
        return tuple(bundles)


@dataclass(frozen=True)
class Selection:
    """What a figure was asked for: runs, and the studies among what was named."""

    runs: tuple[Run, ...]
    studies: tuple[StudyRecords, ...]
    names: tuple[str, ...]

    @property
    def title(self) -> str:
        """What was named, as far as it fits."""
        return ", ".join(self.names[:3]) + (" …" if len(self.names) > 3 else "")

    @property
    def trained(self) -> list[Run]:
        """Those with an epoch done. Raises StudyError where there are none."""
        runs = [run for run in self.runs if run.rows]
        if not runs:
            raise StudyError(f"{self.title}: no trial has completed an epoch yet")
        return runs

    @property
    def best(self) -> Run:
        """The most accurate one in validation; of equals the first. Raises StudyError."""
        if len(self.runs) == 1:
            return self.runs[0]
        return max(
            self.trained, key=lambda run: -math.inf if math.isnan(run.accuracy) else run.accuracy
        )

    def home(self, kind: str, *, single: bool) -> Path:
        """Where a PNG of that kind belongs: beside the run, else beside the study, else here."""
        if len(self.runs) == 1 or (single and len(self.names) == 1):
            return self.best.directory / "artifacts" / f"{kind}.png"
        if len(self.names) == 1:
            return self.studies[0].directory / "figures" / f"{kind}.png"
        return Path(f"{kind}.png").absolute()

    def groups(self) -> dict[str, list[Run]]:
        """Trained runs by space, operator and rule; the space is named where there are several."""
        runs = self.trained
        spaces = {run.spec.model.space for run in runs}
        found: dict[str, list[Run]] = {}
        for run in runs:
            parts = [run.spec.model.space] if len(spaces) > 1 else []
            found.setdefault(" · ".join([*parts, run.method]), []).append(run)
        return found


def titled(component: Component) -> str:
    """`xnor`, or `xnor(input_scale=True)` where options were given."""
    options = ", ".join(f"{key}={value}" for key, value in sorted(component.options.items()))
    return f"{component.name}({options})" if options else component.name


def select(names: Sequence[str], runs: Path) -> Selection:
    """The trials of studies and single trials, by path or by name under `runs`.

    Raises StudyError for a name that is neither, and for a study without a trial.
    """
    chosen: dict[Path, Run] = {}
    studies: list[StudyRecords] = []
    called: list[str] = []
    for name in names:
        study = _study(name, runs)
        if study is not None:
            if not study.trials():
                raise StudyError(f"study '{study.name}' has no trial yet")
            studies.append(study)
            called.append(study.name)
            for trial in study.trials():
                chosen.setdefault(trial.directory, as_run(study, trial))
        else:
            run = _single(name, runs)
            called.append(run.name)
            chosen.setdefault(run.directory, run)
    return Selection(tuple(chosen.values()), tuple(studies), tuple(called))


def of_study(directory: Path) -> Selection:
    """All trials of a study directory. Raises StudyError."""
    return select([str(directory)], directory.parent)


def of_trial(directory: Path) -> Selection:
    """One trial. Raises StudyError."""
    return select([str(directory)], directory.parent)


def as_run(study: StudyRecords, trial: TrialRecords) -> Run:
    """A study's trial."""
    return Run(trial.directory, study=study, state=trial.state)


def _study(name: str, runs: Path) -> StudyRecords | None:
    try:
        return StudyRecords(find_study(name, runs))
    except StudyError:
        if any((path / "study.json").exists() for path in (Path(name), runs / name)):
            raise
        return None


def _single(name: str, runs: Path) -> Run:
    try:
        directory = find_trial(name, runs)
    except StudyError:
        raise StudyError(
            f"there is no study and no run '{name}', neither as a path nor under {runs}"
        ) from None
    above = directory.parent.parent
    if directory.parent.name == "trials" and (above / "study.json").exists():
        study = StudyRecords(above)
        for trial in study.trials():
            if trial.id == directory.name:
                return Run(directory, study=study, state=trial.state)
    return Run(directory)


def mean_and_spread(columns: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats, Floats]:
    """(epochs, mean, standard deviation) over the columns that have a finite value there.

    The deviation is that of a sample; it is 0 where there is a single value.
    """
    epochs = sorted({float(epoch) for column in columns for epoch in column[0]})
    means, spreads = [], []
    for epoch in epochs:
        values = np.concatenate([y[(x == epoch) & np.isfinite(y)] for x, y in columns])
        means.append(values.mean() if len(values) else math.nan)
        spreads.append(values.std(ddof=1) if len(values) > 1 else 0.0)
    return np.array(epochs), np.array(means), np.array(spreads)


def pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """All pairs whose wirings choose from the same edges."""
    return [
        (one, other)
        for one, other in itertools.combinations(runs, 2)
        if one.edge_space == other.edge_space
    ]
