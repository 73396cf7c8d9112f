"""The command line: what it lists, what it prints, and one clear sentence for every mistake."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path

import pytest

from search.cli import main
from search.config import StudyConfig
from search.study import Study


class Ended(Exception):
    """How a command ended, with all it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def wiring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Runner:
    monkeypatch.chdir(tmp_path)
    return Runner(monkeypatch, capsys)


class Runner:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Ended:
        self.monkeypatch.setattr("sys.argv", ["wiring", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        printed = self.capsys.readouterr()
        return Ended(int(end.value.code or 0), printed.out, printed.err)


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("spaces", {"mobilenet-graph", "tiny"}),
        ("ops", {"dense", "bwn", "xnor", "adder"}),
        ("rules", {"dnw", "dnw-no-update", "random", "complete"}),
        ("algorithms", {"random", "evolution", "tpe", "nsga2"}),
        ("data", {"digits", "mnist", "cifar10", "cifar100", "imagenet", "folder"}),
    ],
)
def test_list_names_everything_with_a_summary(wiring: Runner, kind: str, known: set[str]) -> None:
    end = wiring("list", kind, "--json")
    entries = json.loads(end.out)
    assert end.code == 0
    assert known <= {entry["name"] for entry in entries}
    assert all(set(entry) == {"name", "summary", "paper"} for entry in entries)
    assert all(entry["summary"] for entry in entries)


def test_kernels_tells_of_every_operation_on_every_back_end(wiring: Runner) -> None:
    end = wiring("kernels", "--json")
    rows = json.loads(end.out)
    assert end.code == 0
    assert {row["backend"] for row in rows} == {"cpu", "cuda"}
    assert {"bitpack", "select_edges"} <= {row["op"] for row in rows}
    assert all(row["available"] in (True, False) and row["detail"] for row in rows)


def test_a_dry_run_prints_toml_that_gives_the_same_settings(wiring: Runner, tmp_path: Path) -> None:
    flags = ["--op", "xnor,adder", "--trials", "3", "--set", "train.lr=0.05", "--max-time", "2m"]
    first = wiring("search", *flags, "--dry-run")
    assert tomllib.loads(first.out)["train"] == {"lr": 0.05}
    (tmp_path / "s.toml").write_text(first.out)
    again = wiring("search", "--config", "s.toml", "--dry-run")
    assert (again.code, again.out) == (0, first.out)


def test_flags_stand_before_the_file_and_settings_before_flags(
    wiring: Runner, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text("trials = 3\nseed = 1\n[train]\nepochs = 4\n")
    flags = ["--config", "s.toml", "--epochs", "5", "--seed", "2", "--set", "seed=9"]
    printed = tomllib.loads(wiring("search", *flags, "--dry-run").out)
    assert (printed["trials"], printed["train"]["epochs"], printed["seed"]) == (3, 5, 9)


def test_an_option_of_the_operator_is_set_by_name(wiring: Runner) -> None:
    end = wiring("search", "--op", "xnor", "--set", "op.input_scale=true", "--dry-run")
    assert tomllib.loads(end.out)["op"] == [{"name": "xnor", "input_scale": True}]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["search", "--op", "xnorr"], "unknown edge operator 'xnorr'; did you mean xnor"),
        (["search", "--space", "mobilenets"], "unknown space 'mobilenets'; did you mean"),
        (["train", "--pool", "used"], "space mobilenet-graph: pool: input should be 'usable' or"),
        (["search", "--rule", "dnv"], "unknown edge rule 'dnv'; did you mean dnw"),
        (["search", "--algorithm", "tpee"], "unknown algorithm 'tpee'"),
        (["search", "--data", "mnits"], "unknown data set 'mnits'; did you mean mnist"),
        (["search", "--trials", "0"], "trials: input should be greater than 0, got 0"),
        (["search", "--minimize", "flops"], "minimize.0:"),
        (["search", "--scheduler", "hyperband"], "scheduler:"),
        (["search", "--max-time", "soon"], "a duration is like 90s"),
        (["search", "--set", "epochs"], "--set takes key=value"),
        (["search", "--set", "trian.lr=1"], "unknown key 'trian'; known keys here:"),
        (["search", "--set", "train.lr=-1"], "lr: input should be greater than 0, got -1"),
        (["search", "--set", "train.epohcs=1"], "unknown key 'epohcs'"),
        (["search", "--op", "xnor", "--set", "op.no_such=1"], "unknown key 'no_such'"),
        (["search", "--op", "xnor,bwn", "--set", "op.center=true"], "needs exactly one --op"),
        (["search", "--set", "fix.depth=3"], "depth"),
        (["search", "--set", "fix.lr=99"], "lr"),
        (["search", "--config", "missing.toml"], "missing.toml: cannot be read"),
        (["search", "--data", "mnist", "--data-root", "nowhere"], "nowhere"),
        (["search", "--tracking-uri", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["search", "--address", "127.0.0.1:9"], "127.0.0.1:9"),
        (["train", "--set", "train.threads=two"], "threads"),
        (["train", "--op", "xnor,bwn"], "wiring train takes one --op"),
        (["resume", "no-study"], "no study 'no-study'"),
        (["evaluate", "no-run"], "no run 'no-run'"),
    ],
)
def test_a_mistake_gives_one_sentence_and_a_failing_exit_code(
    wiring: Runner, arguments: list[str], sentence: str
) -> None:
    end = wiring(*arguments)
    assert end.code != 0
    last = end.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert sentence in last
    assert "Traceback" not in end.err


def graph_file(edges: list[tuple[str, str, float]]) -> str:
    links = [{"source": u, "target": v, "weight": w} for u, v, w in edges]
    nodes = [{"id": name} for name in "abc"]
    graph = {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "edges": links}
    return json.dumps(graph)


@pytest.mark.parametrize(
    ("edges", "sentence"),
    [
        ([("a", "b", 1.0), ("b", "c", 1.0), ("c", "a", 1.0)], "cycle"),
        ([("a", "b", 1.0), ("b", "z", 1.0)], "there is no node z"),
        ([("a", "b", math.nan), ("b", "c", 1.0)], "must be finite"),
        ([("a", "b", 1.0)], "node c is isolated"),
    ],
)
def test_a_broken_graph_file_is_named_with_its_fault(
    wiring: Runner, tmp_path: Path, edges: list[tuple[str, str, float]], sentence: str
) -> None:
    (tmp_path / "g.json").write_text(graph_file(edges))
    end = wiring("train", "--space", "graph-file", "--set", "space.path=g.json")
    assert end.code == 1
    assert "g.json" in end.err
    assert sentence in end.err
    assert not (tmp_path / "wiring-runs").exists() or not any((tmp_path / "wiring-runs").iterdir())


def test_one_network_is_trained_found_and_tested_again(wiring: Runner, tmp_path: Path) -> None:
    settings = ["--set", "data.limit=200", "--set", "train.batch_size=16"]
    flags = ["--op", "bwn", "--epochs", "1", "--name", "one", "--json"]
    end = wiring("train", *flags, *settings)
    assert end.code == 0, end.err
    (network,) = json.loads(end.out)["front"]
    again = json.loads(wiring("evaluate", network["run_id"], "--json").out)
    assert again["accuracy"] == network["test_accuracy"]
    assert (tmp_path / "wiring-runs" / "one" / "trials" / "0000" / "artifacts").is_dir()


def test_a_mistake_in_a_toml_file_names_the_file_and_line(wiring: Runner, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("trials = \n")
    assert "s.toml: is not TOML" in wiring("search", "--config", "s.toml").err


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["wiring", "resume", "no-study", "--debug"])
    with pytest.raises(Exception, match="no study 'no-study'"):
        main()


def test_a_study_name_is_never_reused(wiring: Runner, tmp_path: Path) -> None:
    config = StudyConfig.model_validate({"space": "tiny"})
    Study.create(tmp_path / "wiring-runs", "taken", config)
    end = wiring("search", "--name", "taken")
    assert end.code == 1
    assert "'taken' exists already" in end.err
