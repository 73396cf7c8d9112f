"""Runs a study from its first line on the screen to its front: Ray, data, tracking, signals."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.data import ImageData, load_data
from workers.trial import run_trial

from search.config import StudyConfig
from search.console import error_console, watch
from search.spaces.base import SPACES
from search.study import Study
from search.tracking import Mirror, tracking_reachable
from wiring.graph.edges import EDGE_OPS, EDGE_RULES

FLUSH_DEADLINE_S = 20.0


@dataclass
class Outcome:
    """How a drive ended. `unsent` counts what the tracking store has not got yet."""

    study: Study
    mlflow_run: str | None
    tracking_uri: str
    unsent: int
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
    for op in config.op:
        EDGE_OPS.get(op.name).parse_options(op.options)
    for rule in config.rule:
        EDGE_RULES.get(rule.name).parse_options(rule.options)
    if tracking_uri is not None:
        tracking_reachable(tracking_uri)


def drive(
    study: Study,
    *,
    address: str | None = None,
    token_file: Path | None = None,
    tracking_uri: str | None = None,
    max_time: float | None = None,
) -> Outcome:
    """Run what is left of the study and mirror it to MLflow.

    Raises WiringError; whatever happened until then is on disk.
    """
    begin = time.monotonic()
    with study.locked(), _first_interrupt() as interrupted:
        data = load_data(study.config.data)
        study.begin(data.image, classes=len(data.classes), images=data.counts["train"])
        mirror = Mirror(study.directory, tracking_uri)
        mirror.start()
        try:
            with watch(study, error_console()) as observer:
                if study.kind == "train":
                    _run_here(study, observer, data, interrupted)
                elif not study.finished:
                    _run_on_ray(study, observer, data, address, token_file, max_time, interrupted)
        finally:
            unsent = mirror.close(FLUSH_DEADLINE_S)
        return Outcome(
            study=study,
            mlflow_run=mirror.parent_run_id,
            tracking_uri=mirror.uri,
            unsent=unsent,
            seconds=time.monotonic() - begin,
            interrupted=interrupted() and not study.finished,
        )


def _run_on_ray(
    study: Study,
    observer: Any,
    data: ImageData,
    address: str | None,
    token_file: Path | None,
    max_time: float | None,
    interrupted: Callable[[], bool],
) -> None:
    from workers import cluster

    observer.status("starting Ray" if address is None else f"connecting to Ray at {address}")
    cluster.connect(address, token_file=token_file)
    try:
        from search.tune import run_study

        observer.status("starting the first trials")
        run_study(study, observer, data=data, max_time=max_time, interrupted=interrupted)
    finally:
        cluster.disconnect()


class _Interrupted(Exception):
    """Leaves a trial that runs in this process; its checkpoint is on disk."""


def _run_here(
    study: Study, observer: Any, data: ImageData, interrupted: Callable[[], bool]
) -> None:
    """The single trial of `wiring train`, in this process."""
    trial = study.ask()
    if trial is None:
        return
    observer.started(trial)

    def report(row: dict[str, Any]) -> None:
        if study.record(trial, row):
            observer.reported(trial, row)

    def progress(epoch: int, step: int, steps: int) -> None:
        if interrupted():
            raise _Interrupted

    try:
        result = run_trial(
            study.spec(trial.params), trial.directory, report=report, data=data, progress=progress
        )
    except _Interrupted:
        return
    study.tell(trial, result.state, result=result, reason=result.reason)
    observer.ended(trial)


@contextlib.contextmanager
def _first_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a flag; a second one acts at once."""
    seen: list[int] = []
    previous = {}

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
