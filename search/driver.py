"""Runs a study from its first line on the screen to its front: Ray, data, tracking, signals."""

from __future__ import annotations

import contextlib
import importlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.algorithms.base import ALGORITHMS
from search.config import StudyConfig
from search.console import Watcher, error_console, watch
from search.figures.logged import write_study_figures, write_trial_figures
from search.figures.pareto import write_pareto
from search.figures.wiring import write_artifacts
from search.spaces.base import SPACES
from search.study import Study, Trial
from search.tracking import Mirror, tracking_reachable
from wiring.config import parse
from wiring.errors import WiringError
from wiring.graph.mixed import operators
from wiring.graph.node_rules import NODE_RULES
from wiring.graph.rules import EDGE_RULES
from workers.data import DATA, ImageData, load_data
from workers.evaluate import read_spec
from workers.spec import TrainConfig
from workers.trial import run_trial

FLUSH_DEADLINE_S = 20.0


@dataclass
class Outcome:
    """How a drive ended. `unsent` counts what the tracking store has not got yet, and why."""

    study: Study
    mlflow_run: str | None
    tracking_uri: str
    unsent: int
    tracking_error: str | None
    seconds: float
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C; 1 if not one trial gave a network; else 0."""
        if self.interrupted:
            return 130
        return 0 if self.study.front() else 1


def check(config: StudyConfig, tracking_uri: str | None) -> None:
    """Refuse before anything is created: names, options and the tracking URI.

    Raises UnknownNameError, ConfigError or TrackingError.
    """
    SPACES.get(config.space.name)(config.space.options)
    algorithm = ALGORITHMS.get(config.algorithm.name)
    parse(algorithm.Options, config.algorithm.options, where=f"algorithm {config.algorithm.name}")
    DATA.get(config.data.name)
    parse(TrainConfig, config.train, where="train")
    for op in config.op:
        operators(op)
    for rule in config.rule:
        EDGE_RULES.get(rule.name).parse_options(rule.options)
    if config.node_rule is not None:
        NODE_RULES.get(config.node_rule.name).parse_options(config.node_rule.options)
    if tracking_uri is not None:
        tracking_reachable(tracking_uri)


def drive(
    study: Study,
    *,
    address: str | None = None,
    token_file: Path | None = None,
    tracking_uri: str | None = None,
    max_time: float | None = None,
    here: bool = False,
) -> Outcome:
    """Run what is left of the study and mirror it to MLflow.

    `here` runs one trial after the other in this process, without Ray. Raises WiringError;
    whatever happened until then is on disk.
    """
    begin = time.monotonic()
    with study.locked(), _first_interrupt() as interrupted:
        mirror = Mirror(study.directory, tracking_uri)
        with watch(study, error_console()) as observer:
            if study.finished:
                with _following(study, mirror):
                    observer.status("every trial has ended; sending what MLflow lacks")
            elif here or study.kind == "train":
                data = _prepare(study, observer)
                with _following(study, mirror):
                    _run_here(study, observer, data, interrupted)
            else:
                observer.status("starting Ray and reading the data")
                with _ray(address, token_file) as ray:
                    data = _prepare(study, observer, ray)
                    with _following(study, mirror):
                        from search.tune import run_study

                        run_study(
                            study, observer, data=data, max_time=max_time, interrupted=interrupted
                        )
        study.suspend()
        return Outcome(
            study=study,
            mlflow_run=mirror.parent_run_id,
            tracking_uri=mirror.uri,
            unsent=mirror.unsent(),
            tracking_error=mirror.error,
            seconds=time.monotonic() - begin,
            interrupted=interrupted() and not study.finished,
        )


def _prepare(study: Study, observer: Watcher, ray: Future[Any] | None = None) -> ImageData:
    """Data, search algorithm and Ray; a new study that cannot start leaves nothing behind."""
    try:
        data = load_data(study.config.data, observer.reading)
        study.begin(data.image, classes=len(data.classes), images=data.counts["train"])
        if not study.trials:
            study.check(data.counts["train"])
        data.augment = bool(study.data.augment)
        if ray is not None:
            importlib.import_module("search.tune")  # takes seconds, while Ray starts

            ray.result()
    except WiringError:
        study.discard_if_empty()
        raise
    return data


@contextlib.contextmanager
def _following(study: Study, mirror: Mirror) -> Iterator[None]:
    """Draw every trial that ends and the front, and keep MLflow up to date, in the background."""
    with ThreadPoolExecutor(1, thread_name_prefix="draw") as pool:

        def draw(trial: Trial) -> None:
            trained = (trial.directory / "wirings").is_dir()
            if trained and not (trial.directory / "artifacts" / "wiring.html").exists():
                pool.submit(_try, write_artifacts, trial.directory)
                pool.submit(_try, write_trial_figures, trial.directory)

        for trial in study.trials.values():
            if trial.ended:
                draw(trial)
        study.on_end.append(draw)
        mirror.start()
        try:
            yield
        finally:
            study.on_end.remove(draw)
            if study.front():
                pool.submit(_try, write_pareto, study.directory)
                pool.submit(_try, write_study_figures, study.directory)
            pool.shutdown(wait=True)
            mirror.close(FLUSH_DEADLINE_S)


def _try(draw: Callable[[Path], None], directory: Path) -> None:
    """A study without a picture is still a study: what keeps one from being drawn is logged."""
    try:
        draw(directory)
    except (WiringError, OSError) as error:
        logging.getLogger(__name__).warning("%s is not drawn: %s", directory, error)


@contextlib.contextmanager
def _ray(address: str | None, token_file: Path | None) -> Iterator[Future[Any]]:
    """Connect in the background, since Ray starts for seconds in processes of its own."""
    from workers import cluster

    with ThreadPoolExecutor(1, thread_name_prefix="ray-start") as pool:
        connection = pool.submit(cluster.connect, address, token_file=token_file)
        try:
            yield connection
        finally:
            if connection.exception() is None:
                cluster.disconnect()


class _Interrupted(Exception):
    """Leaves a trial that runs in this process; its checkpoint is on disk."""


def _run_here(
    study: Study, observer: Watcher, data: ImageData, interrupted: Callable[[], bool]
) -> None:
    """One trial after the other, in this process."""
    while not interrupted() and (trial := study.ask()) is not None:
        if not _run_trial(study, trial, observer, data, interrupted):
            return


def _run_trial(
    study: Study,
    trial: Trial,
    observer: Watcher,
    data: ImageData,
    interrupted: Callable[[], bool],
) -> bool:
    """Whether it came to its end."""
    observer.started(trial)

    def report(row: dict[str, Any]) -> None:
        if study.record(trial, row):
            observer.reported(trial, row)

    def progress(epoch: int, step: int, steps: int) -> None:
        if interrupted():
            raise _Interrupted

    try:
        result = run_trial(
            read_spec(trial.directory), trial.directory, report=report, data=data, progress=progress
        )
    except _Interrupted:
        return False
    study.tell(trial, result.state, result=result, reason=result.reason)
    observer.ended(trial)
    return True


@contextlib.contextmanager
def _first_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a flag; a second one acts at once."""
    seen: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        for kind, handler in previous.items():
            signal.signal(kind, handler)

    for kind in (signal.SIGINT, signal.SIGTERM):
        previous[kind] = signal.signal(kind, note)
    try:
        yield lambda: bool(seen)
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
