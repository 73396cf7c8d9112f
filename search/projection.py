"""What MLflow is told of a study and its trials: tags, parameters and metrics, as plain data."""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from search.records import Row, StudyRecords, TrialRecords

# MLflow's limits, less a margin for what counts bytes instead of characters.
PARAM_LENGTH = 500
TAG_LENGTH = 4000


class Metric(NamedTuple):
    """One value of one metric, as MLflow keys it: the same one sent twice counts once."""

    key: str
    value: float
    time_ms: int
    step: int


def study_tags(study: StudyRecords) -> dict[str, str]:
    """Tags of the study's run."""
    return {
        **_common_tags(study),
        "mlflow.runName": study.name,
        "wiring.study": f"{study.name}-{study.digest[:12]}",
        "wiring.kind": study.kind,
        "wiring.trial": "none",
    }


def trial_tags(study: StudyRecords, trial: TrialRecords, parent: str | None) -> dict[str, str]:
    """Tags of a trial's run; `parent` is the study's run."""
    model = trial.spec["model"]
    op, rule = model["op"]["name"], model["rule"]["name"]
    assert parent is not None, "the study's run is created first"
    return {
        **_common_tags(study),
        "mlflow.parentRunId": parent,
        "mlflow.runName": f"{trial.id} {op} {rule}",
        "wiring.study": f"{study.name}-{study.digest[:12]}",
        "wiring.trial": trial.id,
        "wiring.space": model["space"],
        "wiring.op": op,
        "wiring.rule": rule,
        "wiring.seed": str(trial.spec["seed"]),
        "wiring.state": "running",
    }


def _common_tags(study: StudyRecords) -> dict[str, str]:
    tags = {
        "wiring.identity": study.identity,
        "mlflow.source.name": f"wiring {study.kind}",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }
    commit = git_commit()
    if commit:
        tags["mlflow.source.git.commit"] = commit
    recipe = study.recipe
    if recipe:
        tags |= {"wiring.recipe": recipe["recipe"], "wiring.scale": f"{recipe['scale']:g}"}
        if recipe["published"]:
            tags["wiring.published"] = f"{recipe['published']['mean']:g}"
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def git_commit() -> str | None:
    """The commit of the repository we stand in, None outside of one."""
    git = shutil.which("git")
    if git is None:
        return None
    try:
        answer = subprocess.run(
            [git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def study_params(study: StudyRecords) -> dict[str, str]:
    """The study's settings, flat."""
    return _as_params(study.config)


def trial_params(trial: TrialRecords) -> dict[str, str]:
    """The trial's specification, flat; of the topology only its digest and sizes."""
    spec = trial.spec
    model = dict(spec["model"])
    topology = model.pop("topology")
    text = json.dumps(topology, sort_keys=True, separators=(",", ":"))
    budgets = [scope["budget"] for scope in topology["scopes"]]
    return _as_params(
        {
            **model,
            "topology": {
                "digest": hashlib.sha256(text.encode()).hexdigest(),
                "nodes": sum(group["size"] for group in topology["groups"]),
                "groups": len(topology["groups"]),
                "scopes": len(topology["scopes"]),
                "budget": sum(budgets) if None not in budgets else None,
            },
            "train": spec["train"],
            "data": spec["data"],
            "seed": spec["seed"],
        }
    )


def _as_params(data: Mapping[str, Any]) -> dict[str, str]:
    params = {}
    for key, value in _flatten(data):
        key = key.removesuffix(".name")
        params[key] = (value if isinstance(value, str) else json.dumps(value))[:PARAM_LENGTH]
    return params


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def row_metrics(row: Row) -> list[Metric]:
    """An epoch's numbers at step = epoch and at the epoch's own time."""
    time_ms, step = round(1000 * row["time"]), int(row["epoch"])
    return [
        Metric(key, float(value), time_ms, step)
        for key, value in row.items()
        if key not in ("epoch", "time") and _is_number(value)
    ]


def end_metrics(trial: TrialRecords) -> list[Metric]:
    """What is known when the trial has ended: test figures, and costs of the best epoch."""
    result = trial.result
    if result is None:
        return []
    values = {
        "best_epoch": result["best_epoch"],
        "best_val_accuracy": result["val_accuracy"],
        "test_accuracy": result["test_accuracy"],
        "test_loss": result["test_loss"],
        "seconds": result["seconds"],
        **{f"best_{name}": value for name, value in result["costs"].items()},
    }
    rows = trial.rows
    time_ms = round(1000 * rows[-1]["time"]) if rows else trial.asked_ms
    return [
        Metric(key, float(value), time_ms, int(result["epochs"]))
        for key, value in values.items()
        if _is_number(value)
    ]


def end_tags(trial: TrialRecords) -> dict[str, str]:
    """How the trial ended."""
    tags = {"wiring.state": trial.state}
    if trial.result:
        tags["wiring.data_digest"] = trial.result["data_digest"]
    reason = trial.tell.get("reason") if trial.tell else None
    if reason:
        tags["wiring.reason"] = reason[:TAG_LENGTH]
    traceback = trial.tell.get("traceback") if trial.tell else None
    if traceback:
        tags["mlflow.note.content"] = f"```\n{traceback[-TAG_LENGTH:]}\n```"
    return tags


def study_metrics(study: StudyRecords) -> list[list[Metric]]:
    """One row for each trial that has ended, in order: how many have, and the best so far.

    Equal for equal journals, so that a row can be sent again.
    """
    by_id = {trial.id: trial for trial in study.trials()}
    rows, best = [], -math.inf
    for ended, tell in enumerate(study.tells(), start=1):
        time_ms = round(1000 * tell["time"])
        epochs = by_id[tell["trial"]].rows
        best = max(
            [best, *(row["val_accuracy"] for row in epochs if _is_number(row["val_accuracy"]))]
        )
        row = [Metric("trials_ended", float(ended), time_ms, ended)]
        if best > -math.inf:
            row.append(Metric("best_val_accuracy", best, time_ms, ended))
        rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    # A diverged epoch's NaN is left out: stores disagree on what they make of it.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
