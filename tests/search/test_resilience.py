"""Searches that are killed, broken or cut off still end, with the numbers they would have had."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster_tools import LocalCluster
from tests.search import searches
from tests.search.searches import install_plugin, rows, small, start, wait_until
from wiring.config import parse
from workers.spec import TrialSpec
from workers.trial import run_trial

pytestmark = [pytest.mark.ray, pytest.mark.fault]

SEARCH = ["search", *small("--op", "dense", "--trials", "3", "--name", "s")]


@dataclass
class Run:
    """A search that ended: its record and its directory."""

    record: dict[str, Any]
    directory: Path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    cwd = tmp_path_factory.mktemp("once")
    code, record, err = start(*SEARCH, cwd=cwd).end()
    assert code == 0, err
    assert record is not None
    return Run(record, cwd / "wiring-runs" / "s")


def test_a_search_killed_and_interrupted_ends_as_if_never_disturbed(
    uninterrupted: Run, tmp_path: Path
) -> None:
    directory = tmp_path / "wiring-runs" / "s"
    killed = start(*SEARCH, cwd=tmp_path)
    wait_until(lambda: len(rows(directory / "trials" / "0000")) >= 2, killed)
    killed.process.kill()
    killed.end()

    interrupted = start("resume", "s", "--json", cwd=tmp_path)
    wait_until(lambda: len(rows(directory / "trials" / "0001")) >= 1, interrupted)
    interrupted.process.send_signal(signal.SIGINT)
    code, _, err = interrupted.end(timeout=60)
    assert code == 130
    assert f"wiring resume {directory}" in err

    code, record, err = start("resume", "s", "--json", cwd=tmp_path).end()
    assert code == 0, err
    assert record is not None
    assert record["front"] == uninterrupted.record["front"]
    assert record["trials"] == {"finished": 3}
    for trial in ("0000", "0001", "0002"):
        assert rows(directory / "trials" / trial) == rows(
            uninterrupted.directory / "trials" / trial
        )
    # One parent and three children in MLflow, each epoch's accuracy once.
    with sqlite3.connect(tmp_path / "wiring-runs" / "mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone() == (4,)
        accuracies = store.execute("select count(*) from metrics where key = 'val_accuracy'")
        assert accuracies.fetchone() == (9,)


def test_a_trial_has_the_same_numbers_alone_and_under_ray(
    uninterrupted: Run, tmp_path: Path
) -> None:
    trial = uninterrupted.directory / "trials" / "0001"
    spec = parse(TrialSpec, json.loads((trial / "spec.json").read_text()))
    alone: list[dict[str, Any]] = []
    result = run_trial(spec, tmp_path / "alone", report=alone.append)
    strip = [{k: v for k, v in row.items() if k not in searches.TIMES} for row in alone]
    assert strip == rows(trial)
    told = json.loads((trial / "result.json").read_text())
    assert (result.test_accuracy, result.test_loss) == (told["test_accuracy"], told["test_loss"])


def test_trials_that_raise_or_die_are_retried_and_the_study_goes_on(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    install_plugin(plugin)
    marker = tmp_path / "died"
    flags = small("--op", "raising,dying", "--trials", "4", "--retries", "1", "--name", "s")
    code, record, err = start(
        "search", *flags, cwd=tmp_path, PYTHONPATH=str(plugin), DYING_MARKER=str(marker)
    ).end()
    assert code == 0, err
    assert record is not None
    events = (tmp_path / "wiring-runs" / "s" / "journal.jsonl").read_text().splitlines()
    journal = [json.loads(line) for line in events]
    op = {e["trial"]: e["params"]["op"] for e in journal if e["event"] == "ask"}
    ends = {e["trial"]: e for e in journal if e["event"] == "tell"}
    assert set(op.values()) == {"raising", "dying"}
    for trial, end in ends.items():
        if op[trial] == "raising":
            assert end["state"] == "failed"
            assert "this operator is broken (started 2 times)" in end["reason"]
            assert "in forward" in end["traceback"]
        else:
            assert end["state"] == "finished"
    assert marker.exists()
    assert "starts again from its checkpoint" in err
    first = min(trial for trial, name in op.items() if name == "dying")
    directory = tmp_path / "wiring-runs" / "s" / "trials" / first
    result = json.loads((directory / "result.json").read_text())
    assert result["resumed_from"] > 0
    assert [row["epoch"] for row in rows(directory)] == [1, 2, 3]


def test_a_full_disk_stops_the_search_and_costs_no_trial(tmp_path: Path) -> None:
    install_plugin(tmp_path / "plugin")
    marker = tmp_path / "freed"
    settings = {"PYTHONPATH": str(tmp_path / "plugin"), "DYING_MARKER": str(marker)}
    flags = small("--op", "filling", "--trials", "2", "--name", "s")
    code, record, err = start("search", *flags, cwd=tmp_path, **settings).end()
    assert (code, record) == (1, None)
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: /there: cannot be written: No space left on device")
    assert "wiring resume" in last
    marker.touch()
    code, record, err = start("resume", "s", "--json", cwd=tmp_path, **settings).end()
    assert code == 0, err
    assert record is not None
    assert record["trials"] == {"finished": 2}


def test_trials_of_a_node_that_dies_finish_elsewhere(tmp_path: Path) -> None:
    with LocalCluster(nodes=3, cpus=1, head_cpus=0) as cluster:
        flags = ["--op", "dense", "--trials", "4", "--epochs", "12", "--json", "--name", "s"]
        flags += ["--set", "data.limit=600", "--address", cluster.address]
        search = start("search", *flags, "--token-file", str(cluster.token), cwd=tmp_path)
        trials = tmp_path / "wiring-runs" / "s" / "trials"
        wait_until(lambda: all(rows(trials / name) for name in ("0000", "0001")), search)
        before = {name: len(rows(trials / name)) for name in ("0000", "0001")}
        assert max(before.values()) < 12
        cluster.kill_raylet(2)
        killed = time.monotonic()
        code, record, err = search.end()
        assert code == 0, err
        assert record is not None
        assert record["trials"] == {"finished": 4}
        again = [line for line in err.splitlines() if "starts again" in line]
        assert len(again) == 1
        assert all(len(rows(trial)) == 12 for trial in trials.iterdir())
        print(f"\n{again[0]}\nended {time.monotonic() - killed:.1f} s after the kill")


def test_a_diverging_trial_ends_with_its_reason_and_not_the_study(tmp_path: Path) -> None:
    flags = small("--op", "dense", "--trials", "2", "--name", "s", "--set", "train.lr=1.0")
    flags += ["--set", "train.weight_decay=1e6"]
    code, record, err = start("search", *flags, cwd=tmp_path).end()
    assert code == 1
    assert record is not None
    assert record["trials"] == {"diverged": 2}
    assert record["front"] == []
    assert "loss" in err


def test_asha_stops_weak_trials_early_and_a_time_limit_leaves_the_rest_to_resume(
    tmp_path: Path,
) -> None:
    flags = ["--op", "dense", "--trials", "8", "--epochs", "9", "--scheduler", "asha"]
    flags += ["--concurrent", "1", "--set", "data.limit=200", "--set", "train.batch_size=16"]
    directory = tmp_path / "wiring-runs" / "s"
    search = start("search", *flags, "--max-time", "8s", "--name", "s", "--json", cwd=tmp_path)
    _, record, err = search.end()
    assert record is not None
    assert record["trials"]["waiting"] == 1, err
    assert sum(record["trials"].values()) < 8

    code, record, err = start("resume", "s", "--json", cwd=tmp_path).end()
    assert code == 0, err
    assert record is not None
    assert set(record["trials"]) == {"finished", "stopped"}
    assert sum(record["trials"].values()) == 8
    told = [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]
    stopped = [e["trial"] for e in told if e["event"] == "tell" and e["state"] == "stopped"]
    for trial in stopped:
        assert len(rows(directory / "trials" / trial)) in (1, 3)
        assert (directory / "trials" / trial / "artifacts" / "wiring.html").exists()
