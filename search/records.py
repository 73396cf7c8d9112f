"""Reads what a study has left on disk, without judging or changing it.

Lighter than `search.study`: no network is built and no library loaded, so that the mirror and
the figures can look every second. Whatever is not there yet is simply absent.
"""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from wiring.errors import StudyError
from workers.files import read_lines

RECIPE = "recipe.json"
COSTS = "costs.json"

Stamp = list[int]
Row = dict[str, Any]


def stamp(path: Path) -> Stamp | None:
    """[time of change in ns, bytes], None where there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_mtime_ns, status.st_size]


class _Lines:
    """A JSON-lines file that is read again only when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: Stamp | None = None
        self._rows: list[Row] = []

    def read(self) -> list[Row]:
        now = stamp(self.path)
        if now != self._seen:
            self._rows = read_lines(self.path) if now else []
            self._seen = now
        return self._rows


class TrialRecords:
    """One trial: how it was asked for, its rows so far, and its end."""

    def __init__(self, directory: Path, ask: Row) -> None:
        self.directory = directory
        self.id = str(ask["trial"])
        self.number = int(ask["number"])
        self.params: dict[str, Any] = ask["params"]
        self.asked_ms = round(1000 * ask["time"])
        self.tell: Row | None = None
        self._rows = _Lines(directory / "metrics.jsonl")
        self._spec: dict[str, Any] | None = None

    @property
    def state(self) -> str:
        """`running` until the journal holds the trial's end."""
        return self.tell["state"] if self.tell else "running"

    @property
    def rows(self) -> list[Row]:
        """The metrics of every epoch so far."""
        return self._rows.read()

    @property
    def spec(self) -> dict[str, Any]:
        """`TrialSpec.to_dict()`."""
        if self._spec is None:
            self._spec = json.loads((self.directory / "spec.json").read_text())
        assert self._spec is not None
        return self._spec

    @property
    def result(self) -> dict[str, Any] | None:
        """`TrialResult.to_dict()`, None where the trial was stopped, failed or still runs."""
        path = self.directory / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def files(self) -> list[Path]:
        """What a person may want to keep of the trial, as far as it is there."""
        names = ("spec.json", "network.json", COSTS, "result.json", "weights.safetensors")
        named = [self.directory / name for name in names]
        return [p for p in named if p.exists()] + visible_files(self.directory / "artifacts")


class StudyRecords:
    """A study directory. Raises StudyError if it has no readable `study.json`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / "study.json"
        try:
            info = json.loads(path.read_text())
            self.name: str = info["name"]
            self.kind: str = info["kind"]
            self.digest: str = info["digest"]
            self.config: dict[str, Any] = info["config"]
            created: str = info["created"]
            self.created_ms = round(1000 * datetime.fromisoformat(created).timestamp())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{path} cannot be read: {error!r}") from None
        key = json.dumps([self.name, self.digest, created])
        self.identity = hashlib.sha256(key.encode()).hexdigest()[:32]
        self._journal = _Lines(directory / "journal.jsonl")
        self._trials: dict[str, TrialRecords] = {}
        self._replayed = 0
        self._lock = threading.Lock()

    @property
    def minimize(self) -> list[str]:
        """The costs that the study minimises."""
        return list(self.config.get("minimize", ()))

    def trials(self) -> list[TrialRecords]:
        """Every trial asked for so far, in that order."""
        with self._lock:
            events = self._journal.read()
            for event in events[self._replayed :]:
                identity = str(event["trial"])
                if event["event"] == "ask":
                    directory = self.directory / "trials" / identity
                    self._trials[identity] = TrialRecords(directory, event)
                elif event["event"] == "tell":
                    self._trials[identity].tell = event
            self._replayed = len(events)
            return list(self._trials.values())

    def tells(self) -> list[Row]:
        """The ends of trials, in the order in which they came."""
        return [event for event in self._journal.read() if event["event"] == "tell"]

    @property
    def recipe(self) -> dict[str, Any] | None:
        """What a study that reproduces a published result says of it (search/reproduce.py)."""
        path = self.directory / RECIPE
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def finished(self) -> bool:
        """Every trial of the study was asked for and has ended."""
        trials = self.trials()
        wanted = 1 if self.kind == "train" else int(self.config.get("trials", 1))
        return len(trials) >= wanted and all(trial.tell for trial in trials)

    def files(self) -> list[Path]:
        """The study's own files that a person may want to keep."""
        names = ("study.json", RECIPE, "front.md", "front.csv", "pareto.png", "pareto.html")
        named = [self.directory / name for name in names if (self.directory / name).exists()]
        return named + visible_files(self.directory / "figures")


def visible_files(directory: Path) -> list[Path]:
    """Finished files of a directory, sorted; hidden ones are still being written."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.is_file() and not p.name.startswith("."))
