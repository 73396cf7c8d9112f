"""Hands a study's trials to Ray Tune. The only file of the driver that imports ray.tune.

Tune decides where and when a trial runs, starts it again when its worker dies, and stops it
early (ASHA). What was asked and what came back is the study's: Tune's own snapshots, which are
periodic and lose trials when the driver dies, are never read.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ParamSpec, Protocol

os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

from ray import tune
from ray.tune.callback import Callback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.searcher import Searcher

from search.study import Study, Trial
from wiring.config import parse
from wiring.errors import ClusterError, StudyError
from workers.trainable import trainable
from workers.trial import TrialResult

NO_NODE_DEADLINE_S = 60.0


class Observer(Protocol):
    """Who is told what happens; the console is one."""

    def started(self, trial: Trial) -> None: ...
    def reported(self, trial: Trial, row: dict[str, Any]) -> None: ...
    def retried(self, trial: Trial, reason: str) -> None: ...
    def ended(self, trial: Trial) -> None: ...


class _Stateless:
    """Tune pickles all it is given into snapshots nobody reads; ours leave nothing there."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


P = ParamSpec("P")


def _guarded(method: Callable[P, Any]) -> Callable[P, Any]:
    """Tune logs and forgets what its callbacks raise; this keeps it in the object's `faults`."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        owner: Any = args[0]
        try:
            return method(*args, **kwargs)
        except Exception as error:
            owner.faults.append(error)
            return None

    return call


class _Asker(_Stateless, Searcher):
    """Lets Tune draw its trials from the study, never more than may run at once."""

    def __init__(self, study: Study, concurrent: int, faults: list[Exception]) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self.study = study
        self.concurrent = concurrent
        self.faults = faults
        self.running: set[str] = set()

    @_guarded
    def suggest(self, trial_id: str) -> Any:
        if len(self.running) >= self.concurrent:
            return None
        trial = self.study.ask()
        if trial is None:
            return Searcher.FINISHED
        self.running.add(trial_id)
        return {"trial": trial.id}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.running.discard(trial_id)

    # Tune saves its searchers now and then; the study's journal is what counts.
    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


class _Recorder(_Stateless, Callback):
    """Writes what Tune reports into the study, and tells the observer."""

    def __init__(
        self,
        study: Study,
        observer: Observer,
        stopping: Callable[[], bool],
        faults: list[Exception],
    ) -> None:
        self.study = study
        self.observer = observer
        self.stopping = stopping
        self.faults = faults
        self._last_alive = self._last_look = time.monotonic()
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._starts: dict[str, int] = {}

    def _trial(self, trial: Any) -> Trial:
        return self.study.trials[trial.config["trial"]]

    @_guarded
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._trial(trial)
        self._starts[ours.id] = self._starts.get(ours.id, 0) + 1
        self.observer.started(ours)

    @_guarded
    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.observer.retried(self._trial(trial), _last_line(_error_text(trial)))

    @_guarded
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        ours = self._trial(trial)
        if "fault" in result:
            raise StudyError(
                f"{result['fault']}; mend that and go on with "
                f"'wiring resume {self.study.directory}'"
            )
        if "result" in result or "error" in result:
            self._outcomes[ours.id] = result
        elif self.study.record(ours, result["row"]):
            self.observer.reported(ours, result["row"])

    @_guarded
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._trial(trial)
        outcome = self._outcomes.pop(ours.id, None)
        if outcome is None and self.stopping():
            return  # cut short, not ended: a resumed study goes on with it
        if outcome is None:
            self.study.tell(ours, "stopped", reason="the scheduler stopped it early")
        elif "error" in outcome:
            self.study.tell(ours, "failed", reason=outcome["error"], traceback=outcome["traceback"])
        else:
            result = parse(TrialResult, outcome["result"])
            self.study.tell(ours, result.state, result=result, reason=result.reason)
        self.observer.ended(ours)

    @_guarded
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._trial(trial)
        text = _error_text(trial)
        starts = self._starts.get(ours.id, 1)
        reason = f"{_last_line(text)} (started {starts} times)"
        self.study.tell(ours, "failed", reason=reason, traceback=text or None)
        self.observer.ended(ours)

    @_guarded
    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        import ray

        # With the head alive and every node dead, Tune would wait for ten minutes.
        now = time.monotonic()
        if now - self._last_look < 1:
            return
        self._last_look = now
        if any(node["Alive"] for node in ray.nodes()):
            self._last_alive = now
        elif now - self._last_alive > NO_NODE_DEADLINE_S:
            raise ClusterError(
                f"no node of the cluster has been alive for {NO_NODE_DEADLINE_S:.0f} s; "
                f"start one and go on with 'wiring resume {self.study.directory}'"
            )


class _Stopper(_Stateless, tune.Stopper):
    """Ends the whole experiment, never a single trial."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stopping()


def _capacity(cpus: float, gpus: float) -> int:
    """How many trials the cluster's resources hold at once, at least one."""
    import ray

    resources = ray.cluster_resources()
    fits = int(resources.get("CPU", 0) // cpus)
    if gpus:
        fits = min(fits, int(resources.get("GPU", 0) // gpus))
    return max(1, fits)


def _error_text(trial: Any) -> str:
    try:
        return re.sub(r"\x1b\[[0-9;]*m", "", Path(trial.error_file).read_text())
    except (OSError, TypeError):
        return ""


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip() if text.strip() else "the worker died"


class _Scheduler(_Stateless, ASHAScheduler):
    """ASHA that may start from the rungs an earlier life of the study filled."""

    def replay(self, study: Study) -> None:
        nobody: Any = None
        for trial in study.trials.values():
            if trial.ended:
                known: Any = SimpleNamespace(trial_id=f"earlier-{trial.id}")
                self.on_trial_add(nobody, known)
                for row in trial.rows:
                    self.on_trial_result(nobody, known, row)


def _scheduler(study: Study, epochs: int) -> TrialScheduler:
    if study.config.scheduler == "none":
        return FIFOScheduler()
    scheduler = _Scheduler(
        time_attr="epoch",
        metric="val_accuracy",
        mode="max",
        max_t=epochs,
        grace_period=max(1, epochs // 9),
        reduction_factor=3,
        stop_last_trials=False,
    )
    scheduler.replay(study)
    return scheduler


def run_study(
    study: Study,
    observer: Observer,
    *,
    data: Any,
    interrupted: Callable[[], bool],
    max_time: float | None = None,
) -> None:
    """Run every trial of the study that is left, on the Ray that is connected.

    `data` is an ImageData, or None where each worker loads it itself. Returns when all have
    ended, `max_time` seconds have passed, or `interrupted()`. Raises ClusterError when no node
    is left, StudyError when the study cannot be written.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the study reports what happens
    config = study.config
    concurrent = config.concurrent or _capacity(config.cpus_per_trial, config.gpus_per_trial)
    deadline = time.monotonic() + max_time if max_time else None

    def stopping() -> bool:
        late = deadline is not None and time.monotonic() > deadline
        return late or bool(faults) or interrupted()

    faults: list[Exception] = []
    recorder = _Recorder(study, observer, stopping, faults)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trainable, study=str(study.directory), data=data),
            {"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial},
        ),
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=_Asker(study, concurrent, faults),
            scheduler=_scheduler(study, study.epochs),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(study.directory / "ray"),
            stop=_Stopper(stopping),
            failure_config=tune.FailureConfig(max_failures=config.retries),
            callbacks=[recorder],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(study.directory / "ray", ignore_errors=True)
    if faults:
        raise faults[0]
