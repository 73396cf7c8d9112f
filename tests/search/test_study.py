"""A study on disk: what is asked and told survives, and goes on as if never interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.config import StudyConfig, seconds
from search.study import Study, find_study, find_trial
from wiring.errors import ConfigError, StudyError, UnknownNameError, WiringError
from wiring.network import ImageShape
from workers.trial import TrialResult

IMAGE = ImageShape(channels=1, side=32)


def config(**changes: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {"space": "mobilenet-graph", "op": ["xnor"], "trials": 6, **changes}
    )


def begun(study: Study) -> Study:
    study.begin(IMAGE, classes=10, images=1200)
    return study


@pytest.mark.parametrize(
    ("second", "rule", "reason"),
    [
        ("vq", "dnw", "VectorQuantised trains in 2 stages, for which 1 optimiser steps are too"),
        ("hashed", "set", "sets single weights or reads their gradients"),
    ],
)
def test_a_study_checks_every_operator_before_it_asks_for_a_trial(
    second: str, rule: str, reason: str, tmp_path: Path
) -> None:
    space = {"name": "mobilenet-graph", "size": "eighth"}
    short = {"epochs": 1, "batch_size": 32}
    settings = config(space=space, op=["dense", second], rule=[rule], train=short)
    study = begun(Study.create(tmp_path, "s", settings))
    with pytest.raises(WiringError, match=reason):
        study.check(images=20)


def row(epoch: int, accuracy: float, **changes: float) -> dict[str, Any]:
    costs = dict.fromkeys(
        ("multiplications", "additions", "xnors", "weight_bits", "energy", "live_edges"), 100.0
    )
    return {"epoch": epoch, "val_accuracy": accuracy, **costs, **changes}


def result(accuracy: float, *, energy: float, weight_bits: float = 1.0) -> TrialResult:
    costs = {
        key: value
        for key, value in row(0, 0.0, energy=energy, weight_bits=weight_bits).items()
        if key not in ("epoch", "val_accuracy")
    }
    return TrialResult(
        state="finished",
        epochs=2,
        best_epoch=2,
        val_accuracy=accuracy,
        test_accuracy=accuracy - 0.01,
        test_loss=0.1,
        costs=costs,
        reason=None,
        seconds=1.0,
        data_digest="d",
        resumed_from=0,
    )


@pytest.mark.parametrize("algorithm", ["random", "evolution", "tpe", "nsga2"])
def test_a_study_opened_again_asks_what_an_uninterrupted_one_asks(
    tmp_path: Path, algorithm: str
) -> None:
    def live(runs: Path, *, reopen: bool) -> list[dict[str, Any]]:
        study = begun(Study.create(runs, "s", config(algorithm=algorithm)))
        for step in range(6):
            if reopen:
                study = begun(Study.load(study.directory))
            trial = study.ask()
            assert trial is not None
            study.tell(trial, "finished", result=result(0.1 * step, energy=10.0 - step))
        assert study.ask() is None
        return [trial.params for trial in study.trials.values()]

    once = live(tmp_path / "once", reopen=False)
    again = live(tmp_path / "again", reopen=True)
    assert once == again
    assert len({json.dumps(params) for params in once}) == 6


def test_a_trial_cut_short_is_run_first_with_its_old_choices(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config()))
    first = study.ask()
    second = study.ask()
    assert first is not None
    assert second is not None
    study.record(first, row(1, 0.5))
    study.tell(second, "finished", result=result(0.6, energy=1.0))

    study = begun(Study.load(study.directory))
    again = study.ask()
    assert again is not None
    assert (again.id, again.params) == (first.id, first.params)
    assert [r["epoch"] for r in again.rows] == [1]


def test_an_epoch_reported_twice_is_kept_once(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config()))
    trial = study.ask()
    assert trial is not None
    assert study.record(trial, row(1, 0.5))
    assert not study.record(trial, row(1, 0.5))
    assert len((trial.directory / "metrics.jsonl").read_text().splitlines()) == 1


def test_the_front_holds_the_finished_trials_that_none_dominates(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config(minimize=["energy"])))
    for accuracy, energy in ((0.9, 5.0), (0.8, 6.0), (0.7, 1.0)):
        trial = study.ask()
        assert trial is not None
        study.tell(trial, "finished", result=result(accuracy, energy=energy))
    stopped = study.ask()
    assert stopped is not None
    study.record(stopped, row(1, 0.99, energy=0.1))
    study.tell(stopped, "stopped")
    assert [trial.id for trial in study.front()] == ["0000", "0002"]
    assert study.counts() == {"finished": 3, "stopped": 1}


def test_failed_trials_keep_their_traceback_over_a_restart(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config()))
    trial = study.ask()
    assert trial is not None
    study.tell(trial, "failed", reason="boom", traceback="Traceback: boom")
    kept = Study.load(study.directory).trials[trial.id]
    assert (kept.state, kept.reason, kept.traceback) == ("failed", "boom", "Traceback: boom")


def test_a_torn_last_line_of_the_journal_is_ignored(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config()))
    study.ask()
    with study.journal.open("a") as file:
        file.write('{"event": "tell", "tri')
    assert begun(Study.load(study.directory)).counts() == {"waiting": 1}


def test_a_study_runs_under_one_driver_only(tmp_path: Path) -> None:
    study = Study.create(tmp_path, "s", config())
    with (
        study.locked(),
        pytest.raises(StudyError, match="in use by process"),
        Study.load(study.directory).locked(),
    ):
        pass


def test_an_existing_study_is_never_overwritten(tmp_path: Path) -> None:
    Study.create(tmp_path, "s", config())
    with pytest.raises(StudyError, match="exists already"):
        Study.create(tmp_path, "s", config())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda record: {**record, "version": 9}, "version 9, this program reads 1"),
        (lambda record: {k: v for k, v in record.items() if k != "config"}, "half-written"),
        (lambda record: {**record, "config": {**record["config"], "trials": 7}}, "was changed"),
        (lambda record: {**record, "config": {"space": "tiny", "tirals": 7}}, "unknown key"),
        (lambda record: [], "version None"),
    ],
)
def test_a_damaged_study_file_is_named_with_its_fault(
    tmp_path: Path, change: Any, sentence: str
) -> None:
    path = Study.create(tmp_path, "s", config()).directory / "study.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises((StudyError, ConfigError), match=sentence):
        Study.load(path.parent)


def test_half_a_study_file_is_refused(tmp_path: Path) -> None:
    path = Study.create(tmp_path, "s", config()).directory / "study.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(StudyError, match=r"study\.json cannot be read"):
        Study.load(path.parent)


def test_studies_and_trials_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config()))
    trial = study.ask()
    assert trial is not None
    assert find_study("s", tmp_path) == find_study(str(study.directory), tmp_path)
    assert find_trial("s/0000", tmp_path) == trial.directory
    assert find_trial(str(trial.directory), tmp_path) == trial.directory
    with pytest.raises(StudyError, match="no study 'x'"):
        find_study("x", tmp_path)
    with pytest.raises(StudyError, match="no run 's/0009'"):
        find_trial("s/0009", tmp_path)


def test_a_choice_that_is_fixed_never_varies(tmp_path: Path) -> None:
    study = begun(Study.create(tmp_path, "s", config(fix={"lr": 0.05})))
    trials = [study.ask() for _ in range(3)]
    assert {trial.params["lr"] for trial in trials if trial} == {0.05}


def test_unknown_names_and_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no_such"):
        begun(Study.create(tmp_path, "a", config(fix={"no_such": 1})))
    with pytest.raises(UnknownNameError, match="did you mean tpe"):
        begun(Study.create(tmp_path, "b", config(algorithm="tpee")))


def test_durations_are_read_with_their_unit() -> None:
    assert [seconds(text) for text in ("90", "90s", "10m", "1.5h", "2d")] == [
        90,
        90,
        600,
        5400,
        172800,
    ]
    with pytest.raises(ValueError, match="duration"):
        seconds("-3m")


@pytest.mark.parametrize(
    ("channels", "asked", "used"), [(1, None, False), (3, None, True), (3, False, False)]
)
def test_photographs_are_cropped_and_flipped_unless_the_user_says_otherwise(
    tmp_path: Path, channels: int, asked: bool | None, used: bool
) -> None:
    study = Study.create(tmp_path, "s", config(data={"name": "cifar10", "augment": asked}))
    study.begin(ImageShape(channels=channels, side=32), classes=10, images=1200)
    trial = study.ask()
    assert trial is not None
    assert study.spec(trial.params).data.augment is used
