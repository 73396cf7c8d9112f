"""What a person sees of a study: the table, the lines, the front."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from search.console import LiveTable, PlainLines, clock, compact_number, front_table
from search.study import Study, Trial
from tests.search.test_study import begun, config, result, row


def seen(renderable: object, *, terminal: bool = True) -> str:
    console = Console(file=io.StringIO(), width=120, height=20, force_terminal=terminal)
    console.print(renderable)
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def asked(study: Study) -> Trial:
    trial = study.ask()
    assert trial is not None
    return trial


def full_row(epoch: int, accuracy: float) -> dict[str, object]:
    return {**row(epoch, accuracy), "train_loss": 0.5, "swaps": 3, "epoch_seconds": 10.0}


def test_the_table_shows_a_study_opened_again_before_anything_runs(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config(train={"epochs": 4})))
    study.record(asked(study), full_row(1, 0.5))
    study = Study.load(study.directory)
    text = seen(LiveTable(study, Console(file=io.StringIO()))._render())
    assert "0/6 trials" in text
    assert "waiting" in text
    assert "1/4" in text


def test_the_table_estimates_the_time_left_from_the_epochs_so_far(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config(train={"epochs": 4})))
    trial = asked(study)
    study.record(trial, full_row(1, 0.5))
    hint = {"epoch": 2, "step": 10, "steps": 20, "time": 0}
    (trial.directory / "progress.json").write_text(json.dumps(hint))
    text = seen(LiveTable(study, Console(file=io.StringIO()))._render())
    assert "1.5/4" in text
    assert "0:25" in text  # two and a half epochs of 10 s


def test_a_half_written_progress_hint_is_passed_over(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config(train={"epochs": 4})))
    trial = asked(study)
    (trial.directory / "progress.json").write_text('{"epoch": 2, "st')
    assert "0.0/4" in seen(LiveTable(study, Console(file=io.StringIO()))._render())


def test_a_pipe_gets_a_plain_line_for_every_event(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config(train={"epochs": 4})))
    trial = asked(study)
    file = io.StringIO()
    with PlainLines(study, Console(file=file)) as lines:
        lines.started(trial)
        lines.reported(trial, full_row(1, 0.5))
        lines.retried(trial, "the worker died")
        study.tell(trial, "failed", reason="boom", traceback="…")
        lines.ended(trial)
    started, reported, retried, ended = file.getvalue().splitlines()
    assert "trial 0000 runs: " in started
    assert "lr=" in started
    assert "epoch 1/4 loss 0.500 val 0.5000 live 100.0 swaps 3 energy 100" in reported
    assert retried.endswith("starts again from its checkpoint: the worker died")
    assert ended.endswith("trial 0000 failed: boom")
    assert "\x1b" not in file.getvalue()


def test_the_front_table_has_a_column_for_every_minimised_cost(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config(minimize=["xnors", "weight_bits"])))
    study.tell(asked(study), "finished", result=result(0.91, energy=5.0, weight_bits=2_500_000))
    text = seen(front_table(study))
    for part in ("xnors", "weight bits", "live edges", "0.9100", "0.9000", "2.5M"):
        assert part in text


def test_numbers_and_times_are_short() -> None:
    numbers = [compact_number(value) for value in (7, 1234, 1234567, 2.5e9)]
    assert numbers == ["7", "1.23k", "1.23M", "2.5G"]
    assert [clock(value) for value in (5, 75, 3700)] == ["0:05", "1:15", "1:01:40"]


def test_reading_a_large_data_set_is_told_now_and_then(tmp_path: Path) -> None:
    file = io.StringIO()
    lines = PlainLines(Study.create(tmp_path, "s", config()), Console(file=file))
    lines.reading(1, 60)
    assert file.getvalue() == ""
    lines._last_progress -= 60
    lines.reading(2, 60)
    lines.reading(3, 60)
    assert file.getvalue().count("read 2 of 60 images") == 1
    assert "read 3" not in file.getvalue()
