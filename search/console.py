"""What a person watches while trials run: a live table, or plain lines when output is a pipe."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.study import Study, Trial

READING_PAUSE_S = 5.0

COLOURS = {
    "running": "cyan",
    "finished": "green",
    "stopped": "yellow",
    "diverged": "magenta",
    "failed": "red",
    "waiting": "dim",
}


def cost_label(name: str) -> str:
    """A cost's column heading, with its unit."""
    return {"energy": "energy pJ"}.get(name, name.replace("_", " "))


def compact_number(value: float) -> str:
    """1234567 → 1.23M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """75 → 1:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainLines:
    """One line for every event; what a log file or a pipe wants."""

    def __init__(self, study: Study, console: Console) -> None:
        self.study = study
        self.console = console
        self._begin = time.monotonic()
        self._last_progress = self._begin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _say(self, text: str) -> None:
        seconds = time.monotonic() - self._begin
        print(f"[{seconds:7.1f} s] {text}", file=self.console.file, flush=True)

    def status(self, text: str) -> None:
        self._say(text)

    def reading(self, done: int, images: int) -> None:
        """How far the data set is; a line every few seconds."""
        if time.monotonic() - self._last_progress > READING_PAUSE_S:
            self._last_progress = time.monotonic()
            self._say(f"read {done} of {images} images")

    def started(self, trial: Trial) -> None:
        self._say(f"trial {trial.id} runs: {_choices(trial)}")

    def reported(self, trial: Trial, row: dict[str, Any]) -> None:
        cost = self.study.config.minimize[0]
        self._say(
            f"trial {trial.id} epoch {row['epoch']}/{self.study.epochs} "
            f"loss {row['train_loss']:.3f} val {row['val_accuracy']:.4f} "
            f"live {row['live_edges']} swaps {row['swaps']} {cost} {compact_number(row[cost])}"
        )

    def retried(self, trial: Trial, reason: str) -> None:
        self._say(f"trial {trial.id} starts again from its checkpoint: {reason}")

    def ended(self, trial: Trial) -> None:
        self._say(f"trial {trial.id} {trial.state}{': ' + trial.reason if trial.reason else ''}")


class LiveTable:
    """A table of all trials, redrawn twice a second."""

    def __init__(self, study: Study, console: Console) -> None:
        self.study = study
        self.console = console
        self._begin = time.monotonic()
        self._status = ""
        self._notes: list[str] = []
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def status(self, text: str) -> None:
        self._status = text

    def reading(self, done: int, images: int) -> None:
        self._status = f"reading images: {done} of {images} ({100 * done // images}%)"

    def started(self, trial: Trial) -> None:
        self._status = ""

    def reported(self, trial: Trial, row: dict[str, Any]) -> None: ...

    def retried(self, trial: Trial, reason: str) -> None:
        self._notes.append(f"trial {trial.id} starts again from its checkpoint: {reason}")

    def ended(self, trial: Trial) -> None:
        if trial.reason and trial.state != "stopped":
            self._notes.append(f"trial {trial.id} {trial.state}: {trial.reason}")

    def _render(self) -> Group:
        trials = list(self.study.trials.values())
        room = max(4, self.console.size.height - 8)
        shown = [t for t in trials if not t.ended][-room:]
        done = [t for t in trials if t.ended]
        shown = done[max(0, len(done) - (room - len(shown))) :] + shown
        cost = self.study.config.minimize[0]
        table = Table(title=self._title(len(done)), title_justify="left", expand=False)
        for name in ("trial", "operator", "rule"):
            table.add_column(name)
        for name in ("live edges", "epoch", "val acc", cost_label(cost)):
            table.add_column(name, justify="right")
        table.add_column("state")
        table.add_column("left", justify="right")
        for trial in shown:
            table.add_row(*self._cells(trial, cost))
        notes = [Text(note, style="yellow", overflow="ellipsis") for note in self._notes[-3:]]
        status = [Text(self._status, style="dim")] if self._status else []
        return Group(table, *notes, *status)

    def _title(self, done: int) -> str:
        elapsed = clock(time.monotonic() - self._begin)
        best = max(
            (t.rows[-1]["val_accuracy"] for t in self.study.trials.values() if t.rows), default=None
        )
        found = f" · best val acc {best:.4f}" if best is not None else ""
        return f"{self.study.name} · {done}/{self.study.config.trials} trials · {elapsed}{found}"

    def _cells(self, trial: Trial, cost: str) -> list[str | Text]:
        row = trial.rows[-1] if trial.rows else None
        epoch, left = self._progress(trial)
        return [
            trial.id,
            str(trial.params["op"]),
            str(trial.params["rule"]),
            compact_number(row["live_edges"]) if row else "",
            epoch,
            f"{row['val_accuracy']:.4f}" if row else "",
            compact_number(row[cost]) if row else "",
            Text(trial.state, style=COLOURS[trial.state]),
            left,
        ]

    def _progress(self, trial: Trial) -> tuple[str, str]:
        done = float(trial.rows[-1]["epoch"]) if trial.rows else 0.0
        epochs = self.study.epochs
        if trial.ended or trial.state == "waiting":
            return f"{done:.0f}/{epochs}", ""
        try:
            hint = json.loads((trial.directory / "progress.json").read_text())
            done = max(done, hint["epoch"] - 1 + hint["step"] / max(1, hint["steps"]))
        except (OSError, ValueError, KeyError):
            pass
        if not trial.rows:
            return f"{done:.1f}/{epochs}", ""
        pace = sum(r["epoch_seconds"] for r in trial.rows) / len(trial.rows)
        return f"{done:.1f}/{epochs}", clock(pace * (epochs - done))


Watcher = LiveTable | PlainLines


def watch(study: Study, console: Console) -> Watcher:
    """The table on a terminal, lines elsewhere."""
    return LiveTable(study, console) if console.is_terminal else PlainLines(study, console)


def _choices(trial: Trial) -> str:
    parts = (
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in trial.params.items()
    )
    return " ".join(parts)


def front_table(study: Study) -> Table:
    """The Pareto front: accuracies against the costs that were minimised."""
    table = Table(title="Pareto front", title_justify="left")
    costs = [*study.config.minimize]
    costs += ["live_edges"] if "live_edges" not in costs else []
    table.add_column("run")
    table.add_column("operator", no_wrap=True)
    table.add_column("rule", no_wrap=True)
    for name in ("val acc", "test acc", *(cost_label(cost) for cost in costs)):
        table.add_column(name, justify="right")
    for trial in study.front():
        assert trial.result is not None
        result = trial.result
        table.add_row(
            trial.id,
            str(trial.params["op"]),
            str(trial.params["rule"]),
            f"{result.val_accuracy:.4f}",
            f"{result.test_accuracy:.4f}",
            *(compact_number(result.costs[name]) for name in costs),
        )
    return table


def error_console() -> Console:
    """Messages and tables go to standard error, so that standard output stays for `--json`."""
    return Console(file=sys.stderr)
