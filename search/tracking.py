"""Shows a study in MLflow. The only file that imports mlflow.

The study directory is the truth and MLflow a projection of it: a background thread compares the
directory with a cursor (`mlflow.json`) and sends what is missing. No trial ever calls this, so a
server that is slow or dead costs no training time; what could not be sent stays on disk and goes
at the next success, or from the next process that opens the study.

Sending again is harmless: runs are looked up by their tags before they are created, and MLflow
keeps one of several metrics that agree in key, step, timestamp and value.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from search.cursor import Cursor
from search.projection import (
    Metric,
    end_metrics,
    end_tags,
    row_metrics,
    study_metrics,
    study_params,
    study_tags,
    trial_params,
    trial_tags,
)
from search.records import COSTS, StudyRecords, TrialRecords, stamp
from search.serve import EXPERIMENT, default_uri, serve_ui, tracking_reachable, without_secrets
from wiring.errors import StudyError, TrackingError

__all__ = ["Mirror", "default_uri", "serve_ui", "tracking_reachable"]

POLL_S = 1.0
LONGEST_PAUSE_S = 30.0
CLOSING_ATTEMPTS = 3
METRICS_PER_BATCH = 1000  # MLflow's own limits of one log_batch call
PARAMS_PER_BATCH = 100
# MLflow's defaults wait 246 s for a dead server; trying again is this module's own affair.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
# By this tag MLflow's pages know an artifact for a table.
TABLES_TAG = "mlflow.loggedArtifacts"
COSTS_TABLE = json.dumps([{"path": COSTS, "type": "table"}])
ENDED_STATUS = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}
# What a server says to one request that it will never accept, while it accepts others.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


class Task(NamedTuple):
    """Something that MLflow does not have yet. `records` is how much of it is counted unsent."""

    kind: str
    value: Any = None
    records: int = 1


class Mirror:
    """Keeps MLflow up to date with one study directory.

    `uri` None means `default_uri` of the directory above. Only `sync_once` raises, whatever
    the server does.
    """

    def __init__(self, study_dir: Path, uri: str | None = None) -> None:
        self.study = StudyRecords(study_dir.absolute())
        self.uri = uri or default_uri(self.study.directory.parent)
        self.error: str | None = None
        self._cursor = Cursor(self.study.directory / "mlflow.json", without_secrets(self.uri))
        self._client: Any = None
        self._experiment = ""
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def parent_run_id(self) -> str | None:
        """The study's run, once it exists."""
        run: str | None = self._cursor.parent.get("run")
        return run

    def start(self) -> None:
        """Begin to send in the background; later failures stand in `error`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="mlflow-mirror", daemon=True)
            self._thread.start()

    def close(self, deadline_s: float) -> int:
        """Send what is left, for `deadline_s` seconds at most; returns how many records remain.

        A record is an epoch's metrics, a run to create or to end, or a file. Runs of trials that
        have not ended are marked KILLED; they go on when the study is resumed.
        """
        deadline = time.monotonic() + deadline_s
        self._closing.set()
        self.start()
        assert self._thread is not None
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._abandoned.set()
        return self.unsent()

    def unsent(self) -> int:
        """How many records the store does not have yet."""
        tasks = list(self._study_tasks())
        for trial in self.study.trials():
            tasks.extend(self._trial_tasks(trial))
        return sum(task.records for task in tasks)

    def sync_once(self) -> None:
        """Send all that is missing now. Raises TrackingError with the first failure."""
        with self._lock:
            try:
                self._sync()
            except TrackingError:
                raise
            except Exception as error:  # whatever MLflow, a driver or the network may throw
                text = " ".join(str(error).split())[:300]
                raise TrackingError(f"tracking at {without_secrets(self.uri)}: {text}") from error

    def _loop(self) -> None:
        pause, failures = POLL_S, 0
        # MLflow's import and a new database take seconds of CPU that the first trial needs.
        while not self._closing.is_set() and self._nothing_reported():
            self._closing.wait(POLL_S)
        while not self._abandoned.is_set():
            closing = self._closing.is_set()
            try:
                self.sync_once()
            except TrackingError as error:
                self.error = str(error)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                failures += closing
            else:
                self.error, pause = None, POLL_S
                if closing:
                    return
            if failures >= CLOSING_ATTEMPTS:
                return
            if closing:
                self._abandoned.wait(POLL_S)
            else:
                self._closing.wait(pause)

    def _nothing_reported(self) -> bool:
        try:
            return not any(trial.rows for trial in self.study.trials())
        except StudyError:
            return False  # sync_once says what is wrong

    # -- what is missing -------------------------------------------------------------------

    def _study_tasks(self) -> Iterator[Task]:
        study, sent = self.study, self._cursor.parent
        if "run" not in sent:
            yield Task("create")
        if not sent.get("params"):
            yield Task("params")
        tells = len(study.tells()) - sent.get("rows", 0)
        if tells > 0:
            yield Task("rows", tells, tells)
        yield from _file_tasks(study.files(), sent)
        yield from self._status_task(sent, "FINISHED" if study.finished else None)

    def _trial_tasks(self, trial: TrialRecords) -> Iterator[Task]:
        sent = self._cursor.trial(trial.id)
        if "run" not in sent:
            yield Task("create")
        if not sent.get("params"):
            yield Task("params")
        rows = len(trial.rows) - sent.get("rows", 0)
        if rows > 0:
            yield Task("rows", rows, rows)
        if trial.tell:
            if sent.get("end") != trial.state:
                yield Task("end", trial.state)
            yield from _file_tasks(trial.files(), sent)
        yield from self._status_task(sent, ENDED_STATUS[trial.state] if trial.tell else None)

    def _status_task(self, sent: dict[str, Any], ended: str | None) -> Iterator[Task]:
        status = ended or ("KILLED" if self._closing.is_set() else "RUNNING")
        if sent.get("status") != status:
            yield Task("status", status)

    # -- sending ---------------------------------------------------------------------------

    def _sync(self) -> None:
        self._connect()
        for task in list(self._study_tasks()):
            self._send_study(task)
        failure: Exception | None = None
        for trial in self.study.trials():
            try:
                for task in list(self._trial_tasks(trial)):
                    if self._abandoned.is_set():
                        return
                    self._send_trial(trial, task)
            except Exception as error:
                if getattr(error, "error_code", None) not in REFUSALS:
                    raise
                failure = failure or error  # of this run only: the others can still be sent
        if failure:
            raise failure

    def _connect(self) -> None:
        """Import MLflow, open the store, and find the experiment; once a process."""
        if self._client is not None:
            return
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Both would write into the live table on the terminal.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            self._experiment = client.create_experiment(EXPERIMENT, self._artifact_location())
        else:
            self._experiment = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(self._experiment)
        self._client = client
        if self.parent_run_id is not None and self._find_runs() is None:
            self._cursor.forget()  # the store was replaced: everything goes there again

    def _artifact_location(self) -> str | None:
        if self.uri.startswith(("http:", "https:", "databricks")):
            return None  # the server knows its own
        return (self.study.directory.parent / "mlartifacts").as_uri()

    def _find_runs(self, trial: str | None = None) -> list[str] | None:
        """The study's or a trial's runs in the store, the oldest first; None if there are none."""
        what = f"tags.`wiring.identity` = '{self.study.identity}'"
        what += f" and tags.`wiring.trial` = '{trial or 'none'}'"
        runs = self._client.search_runs([self._experiment], what)
        found = sorted((run.info.start_time, run.info.run_id) for run in runs)
        return [run for _, run in found] or None

    def _create(self, entry: dict[str, Any], trial: TrialRecords | None) -> None:
        name = trial.id if trial else None
        # Counted before the request: one whose answer was lost may yet have made a run.
        entry["creations"] = entry.get("creations", 0) + 1
        self._cursor.save()
        runs = self._find_runs(name)
        if runs is None:
            tags = trial_tags(self.study, trial, self.parent_run_id) if trial else None
            run = self._client.create_run(
                self._experiment,
                start_time=trial.asked_ms if trial else self.study.created_ms,
                tags=tags or study_tags(self.study),
            )
            runs = [run.info.run_id]
            entry["status"] = "RUNNING"
        entry["run"] = runs[0]

    def _send_study(self, task: Task) -> None:
        entry, study = self._cursor.parent, self.study
        if task.kind == "create":
            self._create(entry, None)
        elif task.kind == "params":
            self._log_params(entry, study_params(study))
        elif task.kind == "rows":
            sent = entry.get("rows", 0)
            self._log_metrics(entry, study_metrics(study)[sent : sent + task.value], task.value)
        elif task.kind == "status":
            tells = study.tells()
            self._set_status(entry, task.value, tells[-1]["time"] if tells else None, None)
        elif task.kind == "file":
            if task.value.name == "front.md":
                self._client.set_tag(entry["run"], "mlflow.note.content", task.value.read_text())
            self._log_file(entry, task.value)
        self._cursor.save()

    def _send_trial(self, trial: TrialRecords, task: Task) -> None:
        entry = self._cursor.trial(trial.id)
        if task.kind == "create":
            self._create(entry, trial)
        elif task.kind == "params":
            self._log_params(entry, trial_params(trial))
        elif task.kind == "rows":
            sent = entry.get("rows", 0)
            rows = trial.rows[sent : sent + task.value]
            self._log_metrics(entry, [row_metrics(row) for row in rows], task.value)
        elif task.kind == "end":
            self._log_metrics(entry, [end_metrics(trial)], 0)
            self._log_tags(entry, end_tags(trial))
            entry["end"] = task.value
        elif task.kind == "status":
            ended = trial.tell["time"] if trial.tell else None
            self._set_status(entry, task.value, ended, trial.id)
        elif task.kind == "file":
            if task.value.name == COSTS:
                # What log_table sets, without its way of adding to a table that is there already.
                self._client.set_tag(entry["run"], TABLES_TAG, COSTS_TABLE)
            self._log_file(entry, task.value)
        self._cursor.save()

    def _log_metrics(self, entry: dict[str, Any], rows: list[list[Metric]], advance: int) -> None:
        from mlflow.entities import Metric as Entity

        flat = [Entity(m.key, m.value, m.time_ms, m.step) for row in rows for m in row]
        for start in range(0, len(flat), METRICS_PER_BATCH):
            self._client.log_batch(entry["run"], metrics=flat[start : start + METRICS_PER_BATCH])
        entry["rows"] = entry.get("rows", 0) + advance

    def _log_params(self, entry: dict[str, Any], params: dict[str, str]) -> None:
        from mlflow.entities import Param

        every = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(every), PARAMS_PER_BATCH):
            self._client.log_batch(entry["run"], params=every[start : start + PARAMS_PER_BATCH])
        entry["params"] = True

    def _log_tags(self, entry: dict[str, Any], tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(entry["run"], tags=[RunTag(k, v) for k, v in tags.items()])

    def _log_file(self, entry: dict[str, Any], path: Path) -> None:
        seen = stamp(path)
        self._client.log_artifact(entry["run"], str(path))
        entry.setdefault("files", {})[path.name] = seen

    def _set_status(
        self, entry: dict[str, Any], status: str, ended_s: float | None, trial: str | None
    ) -> None:
        run = entry["run"]
        if status == "RUNNING":
            self._client.update_run(run, status=status)
        else:
            if entry["creations"] > 1:
                for twin in set(self._find_runs(trial) or ()) - {run}:
                    self._client.delete_run(twin)
            self._client.set_terminated(run, status, round(1000 * ended_s) if ended_s else None)
        entry["status"] = status


def _file_tasks(files: list[Path], sent: dict[str, Any]) -> Iterator[Task]:
    known = sent.get("files", {})
    for path in files:
        if known.get(path.name) != stamp(path):
            yield Task("file", path)
