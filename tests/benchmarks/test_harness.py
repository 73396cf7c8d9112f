"""Cases are found, measured side by side, and told as they were measured."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

from benchmarks import cases, harness, kernels
from benchmarks.harness import Case, Result, capped, measure, table, thread_counts
from wiring.errors import UnknownNameError
from wiring.kernels import backends

FILE = """
from benchmarks.harness import Case

def cases():
    for op in ("{first}", "{second}"):
        yield Case(op, "of {first}", lambda: None, lambda: None, target=2.0, limit_ratio=3.0)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Two case files: `apples` with cases of apples and cores, `pears` of pears and stalks."""
    folder = tmp_path / "fake_cases"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "apples.py").write_text(FILE.format(first="apples", second="cores"))
    (folder / "pears.py").write_text(FILE.format(first="pears", second="stalks"))
    monkeypatch.syspath_prepend(str(tmp_path))
    import fake_cases

    yield fake_cases
    for name in [name for name in sys.modules if name.startswith("fake_cases")]:
        del sys.modules[name]


def result(ratio: float = 3.0, target: float | None = 2.0, limit: float | None = None) -> Result:
    return Result("an op", "a case", 1, 1.0, ratio, ratio, target, limit)


@pytest.mark.parametrize(
    ("op", "found"),
    [
        (None, ["apples", "cores", "pears", "stalks"]),
        ("pears", ["pears", "stalks"]),
        ("cores", ["cores"]),
    ],
)
def test_cases_are_found_by_file_and_by_operation(
    package: ModuleType, op: str | None, found: list[str]
) -> None:
    assert [case.op for case in kernels.find(op, package)] == found


def test_an_unknown_operation_is_refused_with_the_files(package: ModuleType) -> None:
    with pytest.raises(UnknownNameError, match="'plums'; files are apples, pears"):
        list(kernels.find("plums", package))


def test_the_files_of_the_cases_are_there() -> None:
    assert "select_edges" in kernels.files(cases)


def test_both_sides_take_turns_at_least_seven_times() -> None:
    turns: list[str] = []

    def ours() -> None:
        turns.append("ours")
        time.sleep(harness.SAMPLE_SECONDS)

    def theirs() -> None:
        turns.append("theirs")
        time.sleep(harness.SAMPLE_SECONDS)

    measured = measure(Case("op", "case", ours, theirs), threads=1, seconds=0)
    timed = turns[4:]  # each side warms up with two calls
    assert turns[:4] == ["ours", "ours", "theirs", "theirs"]
    assert timed == ["ours", "theirs"] * 7
    assert measured.ratio == measured.torch_ms / measured.ours_ms


def test_a_short_work_is_repeated_inside_a_sample() -> None:
    calls = []
    measure(Case("op", "case", lambda: calls.append(1), lambda: None), threads=1, seconds=0)
    assert len(calls) > 7 * 10


def test_the_fastest_way_of_pytorch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_medians", lambda works, seconds: [2.0, 5.0, 3.0, 4.0])
    ways = [lambda: None] * 3
    measured = measure(Case("op", "case", lambda: None, ways), threads=1, seconds=0)
    assert (measured.torch_ms, measured.ratio) == (3000.0, 1.5)


def test_a_limit_may_be_the_least_work_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_medians", lambda works, seconds: [2.0, 6.0, 1.5])
    case = Case("op", "case", lambda: None, lambda: None, limit_ratio=lambda: None)
    assert measure(case, threads=1, seconds=0).limit_ratio == 4.0


def test_work_runs_on_the_threads_asked_for_and_leaves_them_as_they_were() -> None:
    before, seen = torch.get_num_threads(), set()
    case = Case("op", "case", lambda: seen.add(torch.get_num_threads()), lambda: None)
    measure(case, threads=3, seconds=0)
    assert seen == {3}
    assert torch.get_num_threads() == before


def test_one_and_all_threads_are_measured_unless_a_number_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert thread_counts(None) == [1, 6]
    assert thread_counts(4) == [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert thread_counts(None) == [1]


@pytest.mark.parametrize(
    ("ratio", "target", "verdict"), [(2.0, 2.0, "met"), (1.99, 2.0, "missed"), (1.0, None, "–")]
)
def test_the_verdict_compares_with_the_target(
    ratio: float, target: float | None, verdict: str
) -> None:
    assert result(ratio, target).verdict == verdict


def test_the_table_shows_the_target_and_the_limit_beside_the_ratio() -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table([result(3.25, 2.5, 11.75)], title="a machine"))
    shown = console.export_text()
    row = next(line for line in shown.splitlines() if "a case" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == [
        "an op", "a case", "1", "1.00", "3.25", "3.25", "2.50", "11.8", "met",
    ]  # fmt: skip
    assert "a machine" in shown


def test_pytorch_is_held_to_the_same_instruction_set() -> None:
    environment = {"HOME": "/"}
    assert capped("avx2", environment) == {
        "HOME": "/",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
    for free in (None, "definition", "avx512popcnt"):
        assert capped(free, environment) == environment


def test_the_command_starts_again_only_where_the_cap_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda path, argv, env: started.append((argv, env)))
    harness.cap_torch("avx2", "benchmarks.kernels", ["--isa", "avx2"])
    (argv, environment), *rest = started
    assert argv == [sys.executable, "-m", "benchmarks.kernels", "--isa", "avx2"]
    assert not rest
    monkeypatch.setattr("os.environ", environment)
    harness.cap_torch("avx2", "benchmarks.kernels", ["--isa", "avx2"])
    assert len(started) == 1


def test_a_real_case_gives_one_json_line_with_the_documented_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.cases import select_edges

    monkeypatch.setattr(select_edges, "SIZES", ((500, 20.0),))
    argv = ["--op", "select_edges", "--threads", "1", "--json", "--seconds", "0"]
    assert kernels.main(argv) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert list(line) == [
            "op", "case", "threads", "ours_ms", "torch_ms", "ratio", "target", "limit_ratio",
        ]  # fmt: skip
        assert (line["op"], line["threads"], line["target"]) == ("select_edges", 1, 20.0)
        assert line["ratio"] == pytest.approx(line["torch_ms"] / line["ours_ms"])
    assert backends.instruction_sets()[-1] in err


def test_unknown_names_end_the_command_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["--op", "nothing"]) == 2
    assert kernels.main(["--op", "select_edges", "--isa", "z80"]) == 2
    err = capsys.readouterr().err
    assert "no case is of operation 'nothing'" in err
    assert "unknown instruction set 'z80'" in err
