"""A study: which trials were asked for and what came back, on disk before it counts.

The journal is the truth. Every ask and every end of a trial is appended and synced; a study
opened again replays it into the search algorithm, so that a killed search goes on exactly as
an uninterrupted one. Who executes the trials (`search.tune`, or this very process for
`wiring train`) does not matter here.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from optuna.distributions import CategoricalDistribution

from search.algorithms.base import ALGORITHMS, Algorithm
from search.budget import apply_budget, budget_of, replaced_choices
from search.config import StudyConfig
from search.pareto import pareto_front
from search.spaces.base import SPACES, Space, narrow, settle
from wiring.config import parse
from wiring.errors import StudyError
from wiring.graph.edges import EDGE_OPS
from wiring.graph.mixed import is_mixed
from wiring.network import ImageShape, ModelSpec
from workers.files import append_line, read_lines, write_text
from workers.latency import predictor
from workers.spec import TrainConfig, TrialSpec
from workers.trial import TrialResult, check_trial

VERSION = 1
State = Literal["waiting", "running", "finished", "stopped", "diverged", "failed"]
ENDED: tuple[State, ...] = ("finished", "stopped", "diverged", "failed")


@dataclass
class Trial:
    """One trial as the study knows it. `rows` are its epochs' metrics, oldest first."""

    number: int
    params: dict[str, Any]
    directory: Path
    state: State = "waiting"
    rows: list[dict[str, Any]] = field(default_factory=list)
    result: TrialResult | None = None
    reason: str | None = None
    traceback: str | None = None
    values: tuple[float, ...] | None = None

    @property
    def id(self) -> str:
        return f"{self.number:04d}"

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Study:
    """A study directory, opened. Use `create` or `load`, inside `locked`.

    What stands in `on_end` is called with every trial that has ended.
    """

    def __init__(self, directory: Path, name: str, kind: str, config: StudyConfig) -> None:
        self.directory = directory
        self.name = name
        self.kind = kind
        self.config = config
        self.trials: dict[str, Trial] = {}
        self.train: dict[str, Any] = {}
        self.data = config.data
        self.on_end: list[Callable[[Trial], None]] = []
        self._image: ImageShape | None = None
        self._algorithm: Algorithm | None = None
        self._bought: dict[str, ModelSpec] = {}

    # -- on disk ---------------------------------------------------------------------------

    @classmethod
    def create(cls, runs: Path, name: str, config: StudyConfig, *, kind: str = "search") -> Study:
        """A new study directory. Raises StudyError if it exists or cannot be written."""
        directory = (runs / name).absolute()
        if (directory / "study.json").exists():
            raise StudyError(
                f"study '{name}' exists already in {runs}; resume it with "
                f"'wiring resume {directory}', or choose another --name"
            )
        record = {
            "version": VERSION,
            "name": name,
            "kind": kind,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": config.to_dict(),
            "digest": _digest(config.to_dict()),
        }
        try:
            (directory / "trials").mkdir(parents=True, exist_ok=True)
            write_text(directory / "study.json", json.dumps(record, indent=1))
        except OSError as error:
            raise StudyError(f"{directory}: cannot be written: {error.strerror}") from None
        return cls(directory, name, kind, config)

    @classmethod
    def load(cls, directory: Path) -> Study:
        """A study from its directory, with every trial it has. Raises StudyError."""
        directory = directory.absolute()
        path = directory / "study.json"
        try:
            record = json.loads(path.read_text())
        except FileNotFoundError:
            raise StudyError(f"{directory} is no study: it has no study.json") from None
        except (OSError, ValueError) as error:
            raise StudyError(f"{path} cannot be read: {error}") from None
        version = record.get("version") if isinstance(record, dict) else None
        if version != VERSION:
            raise StudyError(f"{path} is of version {version}, this program reads {VERSION}")
        missing = {"name", "kind", "config", "digest"} - set(record)
        if missing:
            raise StudyError(f"{path} is half-written: it has no '{min(missing)}'")
        config = parse(StudyConfig, record["config"], where=str(path))
        if _digest(record["config"]) != record["digest"]:
            raise StudyError(f"{path} was changed after the study began: its digest differs")
        study = cls(directory, record["name"], record["kind"], config)
        study._read_trials()
        return study

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study against a second driver. Raises StudyError if another one runs."""
        with (self.directory / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise StudyError(f"study '{self.name}' is in use by {holder}") from None
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            yield

    def discard_if_empty(self) -> None:
        """Remove the directory of a study that never asked for a trial."""
        if not self.trials and not self.journal.exists():
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def journal(self) -> Path:
        return self.directory / "journal.jsonl"

    def _read_trials(self) -> None:
        for event in read_lines(self.journal):
            if event["event"] == "ask":
                trial = self._add(int(event["number"]), event["params"])
                trial.rows = read_lines(trial.directory / "metrics.jsonl")
            elif event["event"] == "tell":
                trial = self.trials[event["trial"]]
                trial.state, trial.reason = event["state"], event["reason"]
                trial.traceback = event["traceback"]
                trial.values = tuple(event["values"]) if event["values"] is not None else None
                trial.result = _read_result(trial.directory / "result.json")

    def _add(self, number: int, params: dict[str, Any]) -> Trial:
        trial = Trial(number, params, self.directory / "trials" / f"{number:04d}")
        self.trials[trial.id] = trial
        return trial

    # -- what to try -----------------------------------------------------------------------

    def begin(self, image: ImageShape, *, classes: int, images: int) -> None:
        """Bring the algorithm to where the journal left it. Call before `ask`.

        `image`, `classes` and the number of training `images` are the data set's. Raises
        UnknownNameError or ConfigError if space, operators, rules or algorithm are off.
        """
        config = self.config
        self.space: Space = SPACES.get(config.space.name)(config.space.options)
        self._image, self._classes = image, classes
        settings = self.config.train
        if config.data.augment is None:
            self.data = config.data.replace(augment=self.space.augments(image))
        self.train = {
            "threads": max(1, int(config.cpus_per_trial)),
            **self.space.train(image, epochs=self.epochs, images=images),
            **settings,
        }
        self._components = {
            kind: {component.name: component for component in getattr(config, kind)}
            for kind in ("op", "rule")
        }
        offered, fixed = self.space.choices(image), self._fixed(image)
        mixes = tuple(name for name, op in self._components["op"].items() if is_mixed(op))
        offered["op"] = CategoricalDistribution((*EDGE_OPS.names(), *mixes))
        self._replaced: dict[str, Any] = {}
        if config.budget is not None:
            defaults = self.space.defaults(image)
            for key in replaced_choices(self.space, offered, config.fix):
                self._replaced[key] = defaults[key]
                del offered[key]
                fixed.pop(key, None)
        choices = narrow(offered, fixed)
        if "lr" in settings:  # said outright: it need not lie in the range the space searches
            choices["lr"] = CategoricalDistribution([settings["lr"]])
        self.choices = choices
        space = self.space
        algorithm = ALGORITHMS.get(config.algorithm.name)(
            choices,
            config.directions,
            seed=config.seed,
            options=config.algorithm.options,
            mutate=lambda values, rng: space.mutate(values, choices, rng),
        )
        for event in read_lines(self.journal):
            if event["event"] == "ask":
                algorithm.restore(int(event["number"]), event["params"])
            elif event["event"] == "tell":
                values = event["values"]
                algorithm.tell(int(event["number"]), tuple(values) if values else None)
        self._algorithm = algorithm
        # What cannot be built at all is said now, before anything is asked for.
        first = {kind: next(iter(components)) for kind, components in self._components.items()}
        self._first = {**self.space.defaults(image), **first}
        self.spec(settle(choices, self._first))

    def check(self, images: int) -> None:
        """Refuse a study of whose operators or rules one could not be trained on so many images;
        raises WiringError. Call after `begin`."""
        for op, rule in itertools.product(*self._components.values()):
            params = settle(self.choices, {**self._first, "op": op, "rule": rule})
            check_trial(self.spec({**params, "op": op, "rule": rule}), images)

    @property
    def epochs(self) -> int:
        """Epochs of a full trial."""
        return parse(TrainConfig, self.config.train, where="train").epochs

    def _fixed(self, image: ImageShape) -> dict[str, Any]:
        """Choices that are pinned; all of them where nothing is searched."""
        fixed = {} if self.kind == "search" else self.space.defaults(image)
        fixed.update(self.config.fix)
        if "lr" in self.config.train:
            fixed.pop("lr", None)
        fixed["op"] = list(self._components["op"])
        fixed["rule"] = list(self._components["rule"])
        return fixed

    def ask(self) -> Trial | None:
        """The next trial to run: one cut short in an earlier life, or a new one, or None."""
        assert self._algorithm is not None, "begin() comes first"
        for trial in self.trials.values():
            if trial.state == "waiting":
                trial.state = "running"
                return trial
        if len(self.trials) >= self.config.trials:
            return None
        number = len(self.trials)
        params = self._algorithm.ask(number)
        directory = self.directory / "trials" / f"{number:04d}"
        directory.mkdir(exist_ok=True)
        write_text(directory / "spec.json", json.dumps(self.spec(params).to_dict()))
        append_line(
            self.journal,
            {
                "event": "ask",
                "trial": f"{number:04d}",
                "number": number,
                "params": params,
                "time": time.time(),
            },
        )
        trial = self._add(number, params)
        trial.state = "running"
        return trial

    def spec(self, params: dict[str, Any]) -> TrialSpec:
        """The trial that a point of the space stands for."""
        assert self._image is not None, "begin() comes first"
        values = {**self._replaced, **params}
        for kind, components in self._components.items():
            values[kind] = components[params[kind]].model_dump()
        train = {**self.train, "lr": params["lr"]}
        return TrialSpec(
            model=self._wired(self.space.build(values, self._image, self._classes)),
            train=parse(TrainConfig, train, where="train"),
            data=self.data,
            seed=int(params["seed"]),
            node_rule=self.config.node_rule,
        )

    def _wired(self, model: ModelSpec) -> ModelSpec:
        """The model with the edges that the budget buys, instead of those of the space."""
        budget = self.config.budget
        if budget is None:
            return apply_budget(model, None)
        chosen = {key: one for key, one in model.choices.items() if key not in self._replaced}
        key = json.dumps({**model.to_dict(), "choices": {}}, sort_keys=True)
        if key not in self._bought:
            predict = None
            if budget.unit == "latency_ms":
                predict = predictor()
            self._bought[key] = apply_budget(model, budget, predict)
        bought = self._bought[key]
        return bought.model_copy(update={"choices": {**chosen, **budget_of(bought)}})

    # -- what came back --------------------------------------------------------------------

    def record(self, trial: Trial, row: dict[str, Any]) -> bool:
        """Keep an epoch's metrics; an epoch known already is ignored. Returns whether it is new."""
        if trial.rows and row["epoch"] <= trial.rows[-1]["epoch"]:
            return False
        append_line(trial.directory / "metrics.jsonl", row)
        trial.rows.append(row)
        return True

    def tell(
        self,
        trial: Trial,
        state: State,
        *,
        result: TrialResult | None = None,
        reason: str | None = None,
        traceback: str | None = None,
    ) -> None:
        """The end of a trial: journal, algorithm and `result.json`."""
        assert not trial.ended, f"trial {trial.id} ended twice"
        values = None
        if result is not None and result.state == "finished":
            values = self.config.values({"val_accuracy": result.val_accuracy, **result.costs})
        elif state == "stopped" and trial.rows:
            values = self.config.values(trial.rows[-1])
        if result is not None:
            write_text(trial.directory / "result.json", json.dumps(result.to_dict()))
        append_line(
            self.journal,
            {
                "event": "tell",
                "trial": trial.id,
                "number": trial.number,
                "state": state,
                "values": values,
                "reason": reason,
                "traceback": traceback,
                "time": time.time(),
            },
        )
        if state == "finished":  # its result and weights stand; there is nothing to go on with
            shutil.rmtree(trial.directory / "checkpoints", ignore_errors=True)
        trial.state, trial.result, trial.values = state, result, values
        trial.reason, trial.traceback = reason, traceback
        if self._algorithm is not None:
            self._algorithm.tell(trial.number, values)
        for listener in self.on_end:
            listener(trial)

    def suspend(self) -> None:
        """Nothing runs any more: trials cut short wait to be asked for again."""
        for trial in self.trials.values():
            if trial.state == "running":
                trial.state = "waiting"

    @property
    def finished(self) -> bool:
        """Every trial was asked for and has ended."""
        return len(self.trials) >= self.config.trials and all(
            trial.ended for trial in self.trials.values()
        )

    def front(self) -> list[Trial]:
        """The finished trials no other dominates, best validation accuracy first."""
        trials = [t for t in self.trials.values() if t.state == "finished" and t.values]
        points = [t.values for t in trials if t.values]
        return [trials[index] for index in pareto_front(points, self.config.directions)]

    def counts(self) -> dict[str, int]:
        """How many trials are in each state."""
        states = [trial.state for trial in self.trials.values()]
        return {state: states.count(state) for state in sorted(set(states))}


def find_study(name: str, runs: Path) -> Path:
    """A study's directory from its path or its name under `runs`. Raises StudyError."""
    for candidate in (Path(name), runs / name):
        if (candidate / "study.json").exists():
            return candidate.absolute()
    raise StudyError(f"there is no study '{name}', neither as a path nor under {runs}")


def find_trial(name: str, runs: Path) -> Path:
    """A trial's directory from its path, `STUDY/0003`, or a study of one. Raises StudyError."""
    study, _, number = name.rstrip("/").rpartition("/")
    for candidate in (
        Path(name),
        Path(study) / "trials" / number,
        runs / study / "trials" / number,
        Path(name) / "trials" / "0000",
        runs / name / "trials" / "0000",
    ):
        if (candidate / "spec.json").exists():
            return candidate.absolute()
    raise StudyError(f"there is no run '{name}', neither as a path nor under {runs}")


def _digest(settings: dict[str, Any]) -> str:
    """Of the settings as they are stored: a later version may know more of them."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _read_result(path: Path) -> TrialResult | None:
    if not path.exists():
        return None
    try:
        return parse(TrialResult, json.loads(path.read_text()), where=str(path))
    except ValueError as error:
        raise StudyError(f"{path} is damaged: {error}") from None
