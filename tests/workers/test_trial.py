"""A trial leaves what the study reads, ends with a result whatever happens, and restarts."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_trials import outcome, run_quietly, small_model, small_spec, timeless

from wiring.errors import CheckpointError, ConfigError, StudyError
from wiring.graph.edges import EDGE_OPS
from workers import checkpoint, trial
from workers.data import ImageData, load_data
from workers.data.arrays import ArrayData
from workers.files import write_json
from workers.spec import TrialSpec
from workers.trial import run_trial

COLUMNS = (
    "epoch train_loss train_accuracy val_loss val_accuracy lr phase live_edges swaps swap_rate "
    "mean_age age_q1 median_age age_q3 dead_nodes depth "
    "multiplications additions xnors lookups weight_bits index_bits transforms activation_bits "
    "energy memory_energy step_ms epoch_seconds time"
)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(small_spec().data)


def test_a_trial_leaves_everything_that_the_study_reads(tmp_path: Path, data: ImageData) -> None:
    spec = small_spec(epochs=3)
    result, rows = run_quietly(spec, tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(list(row) == COLUMNS.split() for row in rows)
    assert TrialSpec.model_validate(json.loads((tmp_path / "spec.json").read_text())) == spec
    assert json.loads((tmp_path / "result.json").read_text()) == result.to_dict()
    assert (result.state, result.epochs, result.reason) == ("finished", 3, None)
    assert result.data_digest == data.digest
    assert result.costs["live_edges"] == 100
    assert set(result.costs) >= {"multiplications", "energy", "index_bits"}
    table = json.loads((tmp_path / "costs.json").read_text())
    lines = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    (total,) = [line for line in lines if (line["form"], line["layer"]) == ("found", "total")]
    assert total["activation_bits"] == result.costs["activation_bits"] > 0
    assert 0 <= result.test_accuracy <= 1
    assert result.resumed_from == 0
    for epoch in range(4):
        wiring = safetensors.torch.load_file(tmp_path / f"wirings/epoch-{epoch:04d}.safetensors")
        edges, weights = wiring["all.edges"], wiring["all.weights"]
        assert (edges.dtype, weights.dtype) == (torch.int64, torch.float32)
        assert edges.tolist() == sorted(set(edges.tolist()))
        assert len(edges) == len(weights) == 100
    swaps = [
        len(set(after["all.edges"].tolist()) - set(before["all.edges"].tolist()))
        for before, after in (
            [
                safetensors.torch.load_file(tmp_path / f"wirings/epoch-{e:04d}.safetensors")
                for e in (epoch - 1, epoch)
            ]
            for epoch in (1, 2, 3)
        )
    ]
    assert [row["swaps"] for row in rows] == swaps
    assert sum(swaps) > 0


def test_the_best_epoch_is_the_earliest_with_the_highest_validation_accuracy(
    tmp_path: Path,
) -> None:
    result, rows = run_quietly(small_spec(epochs=6, lr=0.01), tmp_path)
    accuracies = [row["val_accuracy"] for row in rows]
    assert result.val_accuracy == max(accuracies)
    assert result.best_epoch == accuracies.index(max(accuracies)) + 1
    best = rows[result.best_epoch - 1]
    assert {name: best[name] for name in result.costs} == result.costs


def test_a_row_is_reported_only_when_its_checkpoint_is_on_disk(tmp_path: Path) -> None:
    seen = []

    def report(row: dict[str, Any]) -> None:
        newest = sorted(tmp_path.glob("checkpoints/*/step-*"))[-1]
        seen.append(json.loads((newest / "state.json").read_text())["state"]["epoch"])
        assert (tmp_path / f"wirings/epoch-{row['epoch']:04d}.safetensors").exists()

    run_trial(small_spec(), tmp_path, report=report)
    assert seen == [1, 2]


def test_what_report_raises_ends_the_trial_which_then_goes_on_where_it_was(tmp_path: Path) -> None:
    spec = small_spec(epochs=3)
    run_quietly(spec, tmp_path / "whole")

    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(spec, tmp_path / "stopped", report=stop)
    result, rows = run_quietly(spec, tmp_path / "stopped")
    assert result.resumed_from == 4
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


class Counted(ArrayData):
    """Data that count how often the test images are asked for."""

    def __init__(self, data: ImageData) -> None:
        self.__dict__.update(data.__dict__)
        self.tests = 0

    def test_batches(self, batch_size: int) -> Any:
        self.tests += 1
        return super().test_batches(batch_size)


def test_the_test_images_are_touched_once_and_a_finished_trial_is_not_run_again(
    tmp_path: Path, data: ImageData
) -> None:
    counted, spec = Counted(data), small_spec()
    rows: list[dict[str, Any]] = []
    first = run_trial(spec, tmp_path, report=rows.append, data=counted)
    assert counted.tests == 1
    again: list[dict[str, Any]] = []
    assert run_trial(spec, tmp_path, report=again.append, data=counted) == first
    assert counted.tests == 1
    assert again == rows


def test_killed_between_the_last_epoch_and_the_result_it_still_ends(tmp_path: Path) -> None:
    spec = small_spec()
    run_quietly(spec, tmp_path)
    before = outcome(tmp_path)
    (tmp_path / "result.json").unlink()
    (tmp_path / "weights.safetensors").unlink()
    second, rows = run_quietly(spec, tmp_path)
    assert len(rows) == 2
    assert second.resumed_from == 8
    assert outcome(tmp_path) == before


@pytest.mark.parametrize("rule", ["dnw", "complete"])
@pytest.mark.parametrize("settings", [{"lr": 1e30}, {"lr": 1e8, "momentum": 0.99}])
def test_divergence_is_a_result_with_its_reason(
    tmp_path: Path, rule: str, settings: dict[str, float]
) -> None:
    spec = small_spec(small_model(rule=rule), epochs=20, schedule="constant", **settings)
    result, rows = run_quietly(spec, tmp_path)
    assert result.state == "diverged"
    assert "not finite" in str(result.reason)
    assert result.epochs == len(rows) < 20
    assert result.test_accuracy is None
    assert result.test_loss is None
    again, repeated = run_quietly(spec, tmp_path)
    assert again == result
    assert repeated == rows


@pytest.mark.parametrize("op", EDGE_OPS.names())
def test_every_operator_trains_and_learns_something(tmp_path: Path, op: str) -> None:
    spec = small_spec(small_model(op=op), epochs=2, lr=0.02)
    result, rows = run_quietly(spec, tmp_path)
    assert result.state == "finished"
    assert rows[1]["train_loss"] < rows[0]["train_loss"]


def test_a_batch_of_one_image_trains_even_where_images_shrink_to_one_pixel(tmp_path: Path) -> None:
    model = small_model(side=2)
    spec = small_spec(model, epochs=1, batch_size=1, limit=20)
    spec = spec.replace(data={**spec.data.to_dict(), "side": 2})
    assert run_quietly(spec, tmp_path)[0].state == "finished"


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tmp_path: Path) -> None:
    runs = [
        timeless(run_quietly(small_spec(seed=seed), tmp_path / str(place))[1])
        for place, seed in enumerate((5, 5, 6))
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.filterwarnings("error")
def test_shared_read_only_data_give_the_same_numbers_without_a_warning(
    tmp_path: Path, data: ImageData
) -> None:
    spec = small_spec()
    run_quietly(spec, tmp_path / "own")
    buffers: list[pickle.PickleBuffer] = []
    packed = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    frozen = [memoryview(bytes(buffer.raw())) for buffer in buffers]
    shared = pickle.loads(packed, buffers=frozen)
    assert not shared.parts["train"][0].flags.writeable
    run_trial(spec, tmp_path / "shared", report=lambda row: None, data=shared)
    assert outcome(tmp_path / "own") == outcome(tmp_path / "shared")


def test_progress_ends_every_epoch(tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    run_trial(
        small_spec(),
        tmp_path,
        report=lambda row: None,
        progress=lambda *position: calls.append(position),
    )
    assert {(1, 4, 4), (2, 4, 4)} <= set(calls)


def test_a_directory_that_holds_another_trial_is_refused(tmp_path: Path) -> None:
    run_quietly(small_spec(), tmp_path)
    before = outcome(tmp_path)
    with pytest.raises(CheckpointError, match="holds another trial"):
        run_quietly(small_spec(seed=1), tmp_path)
    assert outcome(tmp_path) == before


def test_data_that_moved_are_the_same_trial_but_other_data_are_not(tmp_path: Path) -> None:
    spec = small_spec()
    run_quietly(spec, tmp_path)
    (tmp_path / "result.json").unlink()
    moved = spec.replace(data={**spec.data.to_dict(), "root": str(tmp_path)})
    assert moved.digest() == spec.digest()
    assert run_quietly(moved, tmp_path)[0].resumed_from == 8
    (tmp_path / "result.json").unlink()
    other = load_data(spec.data.replace(limit=100))
    with pytest.raises(CheckpointError, match="was made with data"):
        run_trial(spec, tmp_path, report=lambda row: None, data=other)


def test_a_network_that_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes 1x12x12 images of 10 classes.*has 1x16x16"):
        run_quietly(small_spec(small_model(side=12)), tmp_path)


def test_a_full_disk_ends_the_trial_in_one_sentence_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(epochs=3)
    run_quietly(spec, tmp_path / "whole")
    write, count = checkpoint.write_synced, 0

    def filling(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_synced", filling)
        with pytest.raises(StudyError, match="cannot be written: No space left on device"):
            run_quietly(spec, tmp_path / "full")
    assert run_quietly(spec, tmp_path / "full")[0].resumed_from == 4
    assert outcome(tmp_path / "full") == outcome(tmp_path / "whole")


def test_an_unwritable_directory_is_a_study_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written"):
        run_quietly(small_spec(), tmp_path / "file" / "trial")


def test_a_damaged_spec_or_result_is_named(tmp_path: Path) -> None:
    run_quietly(small_spec(), tmp_path)
    write_json(tmp_path / "result.json", {"state": "finished"})
    with pytest.raises(ConfigError, match=r"result\.json: key 'epochs' is missing"):
        run_quietly(small_spec(), tmp_path)
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(StudyError, match=r"spec\.json: is not JSON"):
        run_quietly(small_spec(), tmp_path)


def test_a_worker_that_was_replaced_writes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(epochs=1)

    def replaced(row: dict[str, Any]) -> None:
        checkpoint.Checkpoints(tmp_path / "checkpoints", spec.digest())

    with pytest.raises(StudyError, match="attempt 1 was replaced by attempt 2"):
        run_trial(spec, tmp_path, report=replaced)
    assert not (tmp_path / trial.RESULT).exists()
