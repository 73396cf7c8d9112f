"""`wiring optimize` writes the fast form of a trained network and says what it found."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from search.cli import main
from wiring.compiled import load
from workers.evaluate import load_trained


class Ended(Exception):
    """How a command ended, with all it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Runner:
    """Runs `wiring ...` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Ended:
        self.monkeypatch.setattr("sys.argv", ["wiring", *arguments])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        printed = self.capsys.readouterr()
        assert isinstance(code, int)
        return Ended(code, printed.out, printed.err)


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study `one` with one trial of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = ["--set", "data.limit=200", "--set", "train.batch_size=16"]
        command = ["wiring", "train", "--op", "xnor", "--epochs", "1", "--name", "one", *settings]
        patch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
    return folder / "wiring-runs"


@pytest.fixture
def runs(trained_runs: Path, tmp_path: Path) -> Path:
    """A copy of its own for every test."""
    return Path(shutil.copytree(trained_runs, tmp_path / "wiring-runs"))


@pytest.fixture
def wiring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, runs: Path
) -> Runner:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Runner(monkeypatch, capsys)


def test_it_writes_a_file_of_the_cost_and_reports_times_and_differences(
    wiring: Runner, runs: Path
) -> None:
    end = wiring("optimize", "one", "--json", "--threads", "1")
    assert end.code == 0, end.err
    report = json.loads(end.out)
    trial = runs / "one" / "trials" / "0000"
    path = trial / "compiled.safetensors"
    assert report["file"] == str(path)
    assert report["bytes"] == path.stat().st_size
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert report["cost_bits"] <= 8 * (report["bytes"] - header) < report["cost_bits"] + 8 * 100
    assert report["images"] == "validation"
    assert report["max_difference"] == 0.0
    assert report["threads"] == 1
    assert min(report["eager_ms"], report["compiled_ms"]) > 0
    names = [bundle.name for bundle in load_trained(trial)[0].model.topology.bundles]
    assert [choice["bundle"] for choice in report["choices"]] == names
    for choice in report["choices"]:
        assert choice["kernel"] == min(choice["us"], key=choice["us"].__getitem__)
        assert 0 < choice["density"] <= 1


def test_the_file_holds_the_trained_network(wiring: Runner, runs: Path, tmp_path: Path) -> None:
    wiring("optimize", "one", "--output", "fast.safetensors", "--batch", "4")
    _, network = load_trained(runs / "one" / "trials" / "0000")
    x = torch.randn(4, 1, network.spec.image.side, network.spec.image.side)
    with torch.no_grad():
        expected = network.eval()(x)
    found = load(tmp_path / "fast.safetensors", batch=4, cache=False)(x)
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_people_get_a_table_and_three_sentences(wiring: Runner, runs: Path) -> None:
    end = wiring("optimize", "one")
    assert end.code == 0, end.err
    assert re.search(r"s1l1 .*xnor: packed", end.out)
    assert re.search(r"batch 1, \d+ thread\(s\): eager .* ms, compiled .* ms", end.out)
    assert "scores differ by at most 0 (largest: " in end.out
    assert re.search(r"compiled\.safetensors: [\d,]+ bytes, of which cost counts", end.out)


def test_without_the_data_it_compares_on_random_images(wiring: Runner, runs: Path) -> None:
    path = runs / "one" / "trials" / "0000" / "spec.json"
    spec = json.loads(path.read_text())
    spec["data"] |= {"name": "mnist", "root": "/nowhere"}
    path.write_text(json.dumps(spec))
    report = json.loads(wiring("optimize", "one", "--json").out)
    assert report["images"] == "random"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no-run"], "no run 'no-run'"),
        (["one", "--batch", "0"], "batch must be at least 1, got 0"),
        (["one", "--threads", "0"], "threads must be at least 1, got 0"),
        (["one", "--output", "wiring-runs/one/study.json/x"], "study.json/x: cannot be written"),
    ],
)
def test_a_mistake_is_one_sentence(wiring: Runner, arguments: list[str], sentence: str) -> None:
    end = wiring("optimize", *arguments)
    assert end.code == 1
    (line,) = end.err.strip().splitlines()
    assert line.startswith("error: ")
    assert sentence in line


def test_a_trial_without_weights_is_one_sentence(wiring: Runner, runs: Path) -> None:
    (runs / "one" / "trials" / "0000" / "weights.safetensors").unlink()
    end = wiring("optimize", "one")
    assert end.code == 1
    assert "weights.safetensors: cannot be read" in end.err
    assert not (runs / "one" / "trials" / "0000" / "compiled.safetensors").exists()


def test_a_network_that_computes_something_else_is_not_written(
    wiring: Runner, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.optimize.CompiledNetwork.__call__", lambda _, x: x.new_ones(1, 10))
    end = wiring("optimize", "one")
    assert end.code == 1
    assert "scores differ by up to" in end.err
    assert not (runs / "one" / "trials" / "0000" / "compiled.safetensors").exists()


def test_adders_in_bytes_are_smaller_and_say_what_that_costs(
    wiring: Runner, runs: Path, tmp_path: Path
) -> None:
    settings = ["--set", "data.limit=200", "--set", "train.batch_size=16"]
    end = wiring("train", "--op", "adder", "--epochs", "1", "--name", "two", *settings)
    assert end.code == 0, end.err
    reports = []
    for flags in ([], ["--uint8", "--output", "bytes.safetensors"]):
        end = wiring("optimize", "two", "--json", "--threads", "1", *flags)
        assert end.code == 0, end.err
        reports.append(json.loads(end.out))
    whole, small = reports
    assert whole["accuracy"] == {}
    assert set(small["accuracy"]) == {"float32", "uint8"}
    assert abs(small["accuracy"]["float32"] - small["accuracy"]["uint8"]) < 0.2
    assert small["bytes"] < whole["bytes"]
    adders = [op for op in load("bytes.safetensors").choices() if op.op == "adder"]
    assert adders


def test_bytes_without_adders_are_refused(wiring: Runner, runs: Path) -> None:
    end = wiring("optimize", "one", "--uint8")
    assert end.code == 1
    assert end.err == "error: the network has no adder edges in float32 to quantise\n"
