"""A trial under Ray Tune: runs in an actor anywhere in the cluster, reports to the driver."""

from __future__ import annotations

import json
import socket
import time
import traceback
from pathlib import Path
from typing import Any

from wiring.config import parse
from wiring.errors import StudyError, WiringError
from workers.spec import TrialSpec


def trainable(config: dict[str, Any], study: str, data: Any) -> None:
    """Train trial `config["trial"]` of the study directory and report every epoch.

    `data` is the ImageData, held once per node in Ray's object store.

    Reports hold `epoch` and `val_accuracy` for Tune's scheduler and the whole `row`; the last
    one holds the `result`, or the `error` of a trial that would fail the same way again, or the
    `fault` of a study that cannot be written: the disk is full.
    Anything else that raises is left to Tune, which starts the trial again elsewhere.
    """
    from ray import tune

    from workers.trial import run_trial

    directory = Path(study) / "trials" / config["trial"]
    try:
        spec = _read_spec(directory)
    except WiringError as error:
        tune.report({"epoch": 0, "val_accuracy": 0.0, "error": str(error), "traceback": None})
        return
    last = {"epoch": 0, "val_accuracy": 0.0}

    def report(row: dict[str, Any]) -> None:
        last.update(epoch=row["epoch"], val_accuracy=row["val_accuracy"])
        tune.report({**last, "row": row})

    def progress(epoch: int, step: int, steps: int) -> None:
        text = json.dumps({"epoch": epoch, "step": step, "steps": steps, "time": time.time()})
        # A hint for the eye, rewritten every second: neither synced nor atomic.
        (directory / "progress.json").write_text(text)

    try:
        result = run_trial(spec, directory, report=report, data=data, progress=progress)
    except StudyError as error:
        tune.report({**last, "fault": str(error)})
    except WiringError as error:
        tune.report({**last, "error": str(error), "traceback": traceback.format_exc()})
    else:
        tune.report({**last, "result": result.to_dict()})


def _read_spec(directory: Path) -> TrialSpec:
    try:
        text = (directory / "spec.json").read_text()
    except OSError as error:
        raise WiringError(
            f"node {socket.gethostname()} cannot read {directory}: {error.strerror}; "
            "put the study on a path that every node shares (--runs)"
        ) from None
    return parse(TrialSpec, json.loads(text), where=str(directory / "spec.json"))
