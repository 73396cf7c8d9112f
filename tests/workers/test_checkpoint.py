"""Checkpoints are whole or passed over, and an old writer cannot harm its successor."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from wiring.errors import CheckpointError, StudyError
from workers import checkpoint
from workers.checkpoint import Checkpoints


def save(store: Checkpoints, *steps: int) -> None:
    for step in steps:
        store.save(step, {"w": torch.full((100,), float(step))}, {"epoch": step, "lr": 0.1})


def stored(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob("*/*"))


def damage(path: Path, how: str) -> None:
    tensors, state = path / "tensors.safetensors", path / "state.json"
    data = bytearray(tensors.read_bytes())
    if how == "flipped bit":
        data[-5] ^= 1
        tensors.write_bytes(data)
    elif how == "truncated":
        tensors.write_bytes(data[:-10])
    elif how == "no tensors":
        tensors.unlink()
    elif how == "no state":
        state.unlink()
    elif how == "torn state":
        state.write_text(state.read_text()[:-20])
    elif how == "other state":
        state.write_text(state.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    elif how == "empty state":
        state.write_text("{}")


DAMAGES = (
    "flipped bit",
    "truncated",
    "no tensors",
    "no state",
    "torn state",
    "other state",
    "empty state",
)


def test_what_is_saved_is_found_by_the_next_attempt(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, "trial"), 7)
    found = Checkpoints(tmp_path, "trial").newest()
    assert found is not None
    assert (found.step, found.state) == (7, {"epoch": 7, "lr": 0.1})
    assert torch.equal(found.tensors["w"], torch.full((100,), 7.0))


def test_the_newest_two_are_kept_over_all_attempts(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, "trial"), 1, 2, 3)
    assert stored(tmp_path) == ["attempt-0001/step-00000002", "attempt-0001/step-00000003"]
    second = Checkpoints(tmp_path, "trial")
    save(second, 4)
    assert stored(tmp_path) == ["attempt-0001/step-00000003", "attempt-0002/step-00000004"]
    save(second, 5)
    assert stored(tmp_path) == ["attempt-0002/step-00000004", "attempt-0002/step-00000005"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(Checkpoints(tmp_path, "trial"), 1, 2)
    damage(tmp_path / "attempt-0001/step-00000002", how)
    with caplog.at_level(logging.WARNING):
        found = Checkpoints(tmp_path, "trial").newest()
    assert found is not None
    assert found.step == 1
    assert "step-00000002 is damaged" in caplog.text


def test_where_every_checkpoint_is_damaged_training_starts_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(Checkpoints(tmp_path, "trial"), 1, 2)
    for path in tmp_path.glob("*/step-*"):
        damage(path, "truncated")
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(tmp_path, "trial").newest() is None
    assert "training starts anew" in caplog.text


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, "trial"), 1)
    with pytest.raises(CheckpointError, match="belongs to trial trial, not to other"):
        Checkpoints(tmp_path, "other").newest()


def test_a_checkpoint_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(Checkpoints(tmp_path, "trial"), 1)
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    with pytest.raises(CheckpointError, match="is of version 1, this is version 2"):
        Checkpoints(tmp_path, "trial").newest()


def test_attempts_are_numbered_and_never_shared(tmp_path: Path) -> None:
    assert [Checkpoints(tmp_path, "trial").attempt for _ in range(3)] == [1, 2, 3]
    shutil.rmtree(tmp_path / "attempt-0002")
    assert Checkpoints(tmp_path, "trial").attempt == 4


def test_a_writer_that_was_replaced_stops_and_deletes_nothing(tmp_path: Path) -> None:
    zombie = Checkpoints(tmp_path, "trial")
    save(zombie, 1, 2)
    successor = Checkpoints(tmp_path, "trial")
    save(successor, 3)
    before = stored(tmp_path)
    with pytest.raises(StudyError, match="attempt 1 was replaced by attempt 2"):
        save(zombie, 4)
    assert stored(tmp_path) == before


def test_a_zombie_in_the_midst_of_a_save_neither_hides_nor_deletes_its_successors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = Checkpoints(tmp_path, "trial")
    save(zombie, 1, 2)
    successor = Checkpoints(tmp_path, "trial")
    save(successor, 3, 4)
    # As if it had asked before it was replaced.
    monkeypatch.setattr(zombie, "check_current", lambda: None)
    save(zombie, 90, 91, 92)
    assert stored(tmp_path) == [
        "attempt-0001/step-00000091",
        "attempt-0001/step-00000092",
        "attempt-0002/step-00000003",
        "attempt-0002/step-00000004",
    ]
    third = Checkpoints(tmp_path, "trial")
    found = third.newest()
    assert found is not None
    assert found.step == 4
    save(third, 5)
    assert stored(tmp_path) == ["attempt-0002/step-00000004", "attempt-0003/step-00000005"]


def test_a_full_disk_is_one_sentence_and_the_previous_checkpoint_stays_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Checkpoints(tmp_path, "trial")
    save(store, 1, 2)

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_synced", full)
        with pytest.raises(StudyError, match="step-00000003: cannot be written: No space left"):
            save(store, 3)
    assert stored(tmp_path) == ["attempt-0001/step-00000001", "attempt-0001/step-00000002"]
    found = store.newest()
    assert found is not None
    assert found.step == 2


def test_a_root_that_cannot_be_written_is_a_study_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "checkpoints", "trial")


def test_leftovers_of_a_killed_writer_are_cleared_away(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, "trial"), 1)
    left = tmp_path / "attempt-0001" / ".tmp-step-00000002-abc"
    left.mkdir()
    (left / "state.json").write_text("{")
    save(Checkpoints(tmp_path, "trial"), 2)
    assert stored(tmp_path) == ["attempt-0001/step-00000001", "attempt-0002/step-00000002"]


def test_a_checkpoint_holds_tensors_and_json_only(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, "trial"), 1)
    files = sorted((tmp_path / "attempt-0001/step-00000001").iterdir())
    assert [path.name for path in files] == ["state.json", "tensors.safetensors"]
    assert json.loads(files[0].read_text())["step"] == 1
