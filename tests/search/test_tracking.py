"""The mirror of a study in MLflow: everything once, whatever the server does."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.projection import trial_params
from search.records import StudyRecords
from search.serve import server
from search.tracking import Mirror, default_uri, serve_ui, tracking_reachable
from tests.search.fake_study import FakeStudy, trial_spec, whole_study
from wiring.errors import StudyError, TrackingError
from wiring.graph.costs import total_cost
from workers.files import read_json, read_lines, write_json

# Histories by trial, metric and step; "" stands for the study's own run.
Histories = dict[str, dict[str, list[tuple[int, float, int]]]]


@pytest.fixture(scope="module")
def empty_store() -> Iterator[Path]:
    """A new MLflow database, which takes seconds to make."""
    path = Path(tempfile.mkdtemp(prefix="wiring-", dir="/tmp"))
    client(default_uri(path)).search_experiments()
    yield path / "mlflow.db"
    shutil.rmtree(path)


@pytest.fixture
def runs(empty_store: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wiring-", dir="/tmp"))
    shutil.copy(empty_store, path / "mlflow.db")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def mirrored() -> Iterator[FakeStudy]:
    """A study of two trials that has been sent to SQLite once."""
    path = Path(tempfile.mkdtemp(prefix="wiring-", dir="/tmp"))
    study = whole_study(path)
    assert Mirror(study.directory).close(60) == 0
    yield study
    shutil.rmtree(path)


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def all_runs(uri: str) -> dict[str, Any]:
    """Every run of the store by trial, "" for the study's; fails where two are of one trial."""
    store = client(uri)
    experiment = store.get_experiment_by_name("wiring")
    found = store.search_runs([experiment.experiment_id], max_results=1000)
    runs = {run.data.tags["wiring.trial"].replace("none", ""): run for run in found}
    assert len(runs) == len(found)
    return runs


def histories(uri: str) -> Histories:
    store = client(uri)
    return {
        trial: {
            key: [
                (metric.step, metric.value, metric.timestamp)
                for metric in store.get_metric_history(run.info.run_id, key)
            ]
            for key in run.data.metrics
        }
        for trial, run in all_runs(uri).items()
    }


def expected(study: FakeStudy, trial: str) -> dict[str, list[tuple[int, float, int]]]:
    """What the trial's metrics.jsonl says the per-epoch histories are."""
    rows = read_lines(study.trial(trial) / "metrics.jsonl")
    return {
        key: [(row["epoch"], float(row[key]), round(1000 * row["time"])) for row in rows]
        for key in rows[0]
        if key not in ("epoch", "time", "phase")
    }


def test_every_trial_is_a_child_of_the_study_with_its_tags_and_status(
    mirrored: FakeStudy,
) -> None:
    runs = all_runs(default_uri(mirrored.directory.parent))
    assert set(runs) == {"", "0000", "0001"}
    assert runs[""].info.status == "FINISHED"
    assert runs["0000"].info.status == "FINISHED"
    assert runs["0001"].info.status == "KILLED"
    tags = runs["0000"].data.tags
    assert tags["mlflow.parentRunId"] == runs[""].info.run_id
    assert tags["wiring.study"].startswith("fake-")
    wanted = {"space": "fake", "op": "dense", "rule": "dnw", "seed": "0", "state": "finished"}
    assert {key: tags[f"wiring.{key}"] for key in wanted} == wanted
    assert tags["wiring.data_digest"] == "abc123"
    assert runs["0001"].data.tags["wiring.reason"] == "it stopped"


@pytest.mark.parametrize("trial", ["0000", "0001"])
def test_metric_histories_equal_the_rows_on_disk(mirrored: FakeStudy, trial: str) -> None:
    found = histories(default_uri(mirrored.directory.parent))[trial]
    wanted = expected(mirrored, trial)
    assert {key: found[key] for key in wanted} == wanted


def test_the_end_of_a_trial_brings_test_accuracy_and_best_costs(mirrored: FakeStudy) -> None:
    result = read_json(mirrored.trial("0000") / "result.json")
    metrics = all_runs(default_uri(mirrored.directory.parent))["0000"].data.metrics
    assert metrics["test_accuracy"] == result["test_accuracy"]
    assert metrics["best_weight_bits"] == result["costs"]["weight_bits"]


def test_files_of_an_ended_trial_become_artifacts(mirrored: FakeStudy) -> None:
    uri = default_uri(mirrored.directory.parent)
    run = all_runs(uri)["0000"]
    names = {file.path for file in client(uri).list_artifacts(run.info.run_id)}
    assert {"spec.json", "result.json", "weights.safetensors"} <= names
    stored = Path(run.info.artifact_uri.removeprefix("file://")) / "spec.json"
    assert stored.is_relative_to(mirrored.directory.parent / "mlartifacts")
    assert stored.read_bytes() == (mirrored.trial("0000") / "spec.json").read_bytes()


def test_the_costs_of_a_trial_are_a_table_in_mlflow(mirrored: FakeStudy) -> None:
    runs = all_runs(default_uri(mirrored.directory.parent))
    # What makes MLflow's pages show an artifact as a table, and load_table find it.
    shown = '[{"path": "costs.json", "type": "table"}]'
    assert runs["0000"].data.tags["mlflow.loggedArtifacts"] == shown
    assert "mlflow.loggedArtifacts" not in runs["0001"].data.tags
    stored = read_json(Path(runs["0000"].info.artifact_uri.removeprefix("file://")) / "costs.json")
    lines = [dict(zip(stored["columns"], row, strict=True)) for row in stored["data"]]
    wholes = {line["form"]: line for line in lines if line["layer"] == "total"}
    cost = total_cost(mirrored.networks["0000"])
    assert set(wholes) == {"found", "dense"}
    assert wholes["found"]["weight_bits"] == cost.weight_bits < wholes["dense"]["weight_bits"]
    assert wholes["found"]["activation_bits"] == cost.activation_bits > 0


def test_parameters_hold_the_spec_without_its_edges(mirrored: FakeStudy) -> None:
    params = all_runs(default_uri(mirrored.directory.parent))["0000"].data.params
    assert params["op"] == "dense"
    assert params["train.epochs"] == "3"
    assert params["topology.digest"] == trial_spec().model.topology.digest()
    assert not any(key.startswith("topology.bundles") for key in params)


def test_a_second_mirror_sends_nothing_twice(mirrored: FakeStudy) -> None:
    uri = default_uri(mirrored.directory.parent)
    before = histories(uri)
    second = Mirror(mirrored.directory)
    assert second.unsent() == 0
    assert second.close(60) == 0
    assert histories(uri) == before


def test_a_lost_cursor_doubles_neither_runs_nor_metrics(mirrored: FakeStudy) -> None:
    uri = default_uri(mirrored.directory.parent)
    before = histories(uri)
    (mirrored.directory / "mlflow.json").unlink()
    again = Mirror(mirrored.directory)
    assert again.unsent() > 0
    assert again.close(60) == 0
    assert histories(uri) == before


def test_runs_go_on_where_an_interrupted_study_left_them(runs: Path) -> None:
    study = FakeStudy(runs, trials=1)
    trial = study.ask(0)
    study.epoch(trial, 1)
    first = Mirror(study.directory)
    assert first.close(60) == 0
    uri = default_uri(runs)
    assert {run.info.status for run in all_runs(uri).values()} == {"KILLED"}
    second = Mirror(study.directory)
    second.sync_once()
    assert {run.info.status for run in all_runs(uri).values()} == {"RUNNING"}
    study.epoch(trial, 2)
    study.end(trial)
    assert second.close(60) == 0
    assert {run.info.status for run in all_runs(uri).values()} == {"FINISHED"}
    assert second.parent_run_id == first.parent_run_id
    assert histories(uri)[trial]["val_loss"] == expected(study, trial)["val_loss"]


def test_a_run_made_by_a_request_whose_answer_was_lost_is_found_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = FakeStudy(runs, trials=1)
    trial = study.ask(0)
    study.epoch(trial, 1)
    mirror = Mirror(study.directory)
    from mlflow import MlflowClient

    create = MlflowClient.create_run

    def lose_answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        create(self, *args, **kwargs)
        raise ConnectionError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", lose_answer)
        with pytest.raises(TrackingError, match="the answer was lost"):
            mirror.sync_once()
        with pytest.raises(TrackingError, match="the answer was lost"):
            Mirror(study.directory).sync_once()
    study.end(trial)
    assert Mirror(study.directory).close(60) == 0
    assert set(all_runs(default_uri(runs))) == {"", trial}


def test_of_two_runs_of_one_trial_the_one_that_was_not_used_is_deleted(runs: Path) -> None:
    study = FakeStudy(runs, trials=1)
    trial = study.ask(0)
    study.epoch(trial, 1)
    Mirror(study.directory).sync_once()
    uri = default_uri(runs)
    run = all_runs(uri)[trial]
    # A request thought lost arrives late: the cursor knows that there were two attempts.
    client(uri).create_run(run.info.experiment_id, run.info.start_time + 1, run.data.tags)
    cursor = read_json(study.directory / "mlflow.json")
    cursor["trials"][trial]["creations"] = 2
    write_json(study.directory / "mlflow.json", cursor)
    study.end(trial)
    assert Mirror(study.directory).close(60) == 0
    assert all_runs(uri)[trial].info.run_id == run.info.run_id


def test_a_store_that_was_replaced_gets_everything_again(runs: Path, empty_store: Path) -> None:
    study = whole_study(runs)
    assert Mirror(study.directory).close(60) == 0
    before = histories(default_uri(runs))
    # Under another name, since open connections still see the old file under this one.
    shutil.copy(empty_store, runs / "replaced.db")
    other = f"sqlite:///{runs}/replaced.db"
    cursor = read_json(study.directory / "mlflow.json")
    write_json(study.directory / "mlflow.json", {**cursor, "uri": other})
    assert Mirror(study.directory, other).close(60) == 0
    assert histories(other) == before


def test_a_failed_trial_shows_its_traceback(runs: Path) -> None:
    study = FakeStudy(runs, trials=1)
    trial = study.ask(0)
    study.epoch(trial, 1)
    study.end(trial, "failed")
    assert Mirror(study.directory).close(60) == 0
    run = all_runs(default_uri(runs))[trial]
    assert run.info.status == "FAILED"
    assert "Traceback: here" in run.data.tags["mlflow.note.content"]


def test_long_parameters_are_cut(runs: Path) -> None:
    study = FakeStudy(runs)
    study.ask(0)
    (trial,) = StudyRecords(study.directory).trials()
    trial.spec["model"]["choices"]["story"] = "x" * 10_000
    params = trial_params(trial)
    assert max(map(len, params.values())) == 500
    assert params["choices.story"] == "x" * 500


def test_nothing_answering_neither_raises_nor_loses_anything(runs: Path) -> None:
    study = whole_study(runs)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mirror = Mirror(study.directory, f"http://127.0.0.1:{port}")
    mirror.start()
    everything = mirror.unsent()
    assert mirror.close(10) == everything > 0
    assert mirror.error is not None
    assert mirror.parent_run_id is None


def test_a_server_that_never_answers_does_not_hold_up_the_end(runs: Path) -> None:
    study = whole_study(runs)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        mirror = Mirror(study.directory, f"http://127.0.0.1:{silent.getsockname()[1]}")
        mirror.start()
        assert mirror.close(0.5) == mirror.unsent() > 0
    assert Mirror(study.directory).close(60) == 0


def test_a_study_that_is_none_is_refused(runs: Path) -> None:
    with pytest.raises(StudyError, match=r"study\.json"):
        Mirror(runs / "nothing")


def test_passwords_of_a_tracking_uri_stay_out_of_the_cursor(runs: Path) -> None:
    study = whole_study(runs)
    mirror = Mirror(study.directory, "http://user:secret@127.0.0.1:9/")
    mirror._cursor.save()
    assert "secret" not in (study.directory / "mlflow.json").read_text()


class _Answers(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b'{"experiments": []}')

    def log_message(self, *args: Any) -> None: ...


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_a_server_is_reachable_only_if_it_answers_as_mlflow_does(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Answers, "status", status)
    with http.server.HTTPServer(("127.0.0.1", 0), _Answers) as fake:
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{fake.server_port}"
        if status == 200:
            tracking_reachable(uri)
        else:
            with pytest.raises(TrackingError, match=str(status)):
                tracking_reachable(uri)
        fake.shutdown()


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:1",
        "http://",
        "http://host:99999",
        "ftp://host/store",
        "file:///tmp/mlruns",
        "mlruns",
        "sqlite://mlflow.db",
        "sqlite:////no/such/directory/mlflow.db",
        "sqlite:////etc/hostname",
        "postgresql://user:secret@127.0.0.1:1/runs",
    ],
)
def test_a_bad_tracking_uri_is_refused_in_one_sentence_without_secrets(uri: str) -> None:
    with pytest.raises(TrackingError) as caught:
        tracking_reachable(uri)
    text = str(caught.value)
    assert "\n" not in text
    assert "secret" not in text


def test_the_default_store_is_reachable_before_it_exists(tmp_path: Path) -> None:
    tracking_reachable(default_uri(tmp_path))
    assert not (tmp_path / "mlflow.db").exists()  # asking does not make it


def test_serving_where_nothing_was_tracked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"no mlflow\.db"):
        serve_ui(tmp_path, None)


def test_serving_on_a_port_that_is_taken_is_refused(runs: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=f"127.0.0.1:{port}"):
            serve_ui(runs, default_uri(runs), port=port)


@pytest.mark.fault
def test_a_server_killed_in_mid_run_loses_nothing_and_doubles_nothing(runs: Path) -> None:
    study = FakeStudy(runs, trials=2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store, uri = f"sqlite:///{runs}/server.db", f"http://127.0.0.1:{port}"
    with server(store, runs / "artifacts", "127.0.0.1", port) as process:
        first = study.ask(0)
        study.epoch(first, 1)
        mirror = Mirror(study.directory, uri)
        mirror.sync_once()
        assert mirror.unsent() == 0
        mirror.start()
        second = study.ask(1)
        study.epoch(second, 1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for epoch in range(2, 30):
        study.epoch(first, epoch)
        study.epoch(second, epoch)
    study.end(first)
    assert mirror.close(15) >= 2 * 28
    with server(store, runs / "artifacts", "127.0.0.1", port):
        resumed = Mirror(study.directory, uri)
        study.end(second, "stopped")
        assert resumed.close(120) == 0
        found = histories(uri)
        assert all_runs(uri)[""].info.run_id == resumed.parent_run_id == mirror.parent_run_id
        for trial in (first, second):
            wanted = expected(study, trial)
            assert {key: found[trial][key] for key in wanted} == wanted
        assert [step for step, *_ in found[""]["trials_ended"]] == [1, 2]
