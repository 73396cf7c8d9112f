"""The end of a study, for people and for machines."""

from __future__ import annotations

from typing import Any

from search.console import clock, error_console, front_table
from search.driver import Outcome


def as_record(outcome: Outcome) -> dict[str, Any]:
    """What `--json` prints: plain data, one line."""
    study = outcome.study
    front = []
    for trial in study.front():
        assert trial.result is not None
        front.append(
            {
                "run_id": f"{study.name}/{trial.id}",
                "space": study.config.space.name,
                "op": trial.params["op"],
                "rule": trial.params["rule"],
                "val_accuracy": trial.result.val_accuracy,
                "test_accuracy": trial.result.test_accuracy,
                "costs": trial.result.costs,
            }
        )
    return {
        "study": study.name,
        "front": front,
        "trials": study.counts(),
        "mlflow_run": outcome.mlflow_run,
        "seconds": round(outcome.seconds, 1),
    }


def show(outcome: Outcome) -> None:
    """The front, where things lie, and what to type next, on standard error."""
    study, console = outcome.study, error_console()
    front = study.front()
    if front:
        console.print(front_table(study))
    counts = ", ".join(f"{count} {state}" for state, count in study.counts().items())
    console.print(f"{counts or 'no trials'} in {clock(outcome.seconds)}", highlight=False)
    for trial in study.trials.values():
        if trial.state in ("failed", "diverged"):
            console.print(f"trial {trial.id} {trial.state}: {trial.reason}", style="red")
    lines = [f"study        {study.directory}"]
    if front:
        lines.append(f"best network {front[0].directory}")
    if outcome.mlflow_run:
        lines.append(f"MLflow run   {outcome.mlflow_run} in {outcome.tracking_uri}")
    if outcome.unsent:
        lines.append(
            f"{outcome.unsent} records have not reached MLflow "
            f"({outcome.tracking_error or 'there was no time'}); they are kept, and "
            f"'wiring resume {study.directory}' sends them"
        )
    if study.finished:
        lines.append(f"look at it   wiring ui --runs {study.directory.parent}")
    else:
        lines.append(f"go on with   wiring resume {study.directory}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
