"""Files on disk are whole or absent, and a line once appended stays."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import safetensors.torch
import torch

from wiring.errors import StudyError
from workers import files


def full_disk(path: Path, data: bytes) -> None:
    path.write_bytes(data[: len(data) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    files.write_text(path, "old")
    files.write_text(path, "näw")
    assert path.read_text() == "näw"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    monkeypatch.setattr("wiring.files.write_synced", full_disk)
    with pytest.raises(StudyError, match=r"file\.txt: cannot be written: No space left on device"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_study_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (files.write_text, files.append_line):
        with pytest.raises(StudyError, match="cannot be written"):
            write(tmp_path / "file" / "below.json", "text")


def test_appended_lines_are_read_back_and_a_torn_last_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert files.read_lines(path) == []
    for number in range(3):
        files.append_line(path, {"number": number, "text": "ü" * 5000})
    path.write_bytes(path.read_bytes()[:-7])
    assert [row["number"] for row in files.read_lines(path)] == [0, 1]


def test_appending_after_a_torn_line_cuts_it_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    files.append_line(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": 2, "text": "' + b"x" * 10000)
    files.append_line(path, {"a": 3})
    assert files.read_lines(path) == [{"a": 1}, {"a": 3}]


def test_a_torn_first_line_leaves_an_empty_file_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a"')
    assert files.read_lines(path) == []
    files.append_line(path, {"a": 1})
    assert files.read_lines(path) == [{"a": 1}]


@pytest.mark.parametrize("line", [b"{broken", b"[1]", b"\x00\x00", b"\xff"])
def test_a_whole_line_that_is_no_object_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(StudyError, match="line 2 is not a JSON object"):
        files.read_lines(path)


def test_nan_never_reaches_a_json_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.append_line(tmp_path / "rows.jsonl", {"loss": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "result.json", {"loss": float("inf")})
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_or_have_strides_come_back_equal(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(2, 3, 4)
    tensors = {"base": base, "view": base[0], "turned": base.permute(2, 0, 1), "flag": base > 5}
    files.write_tensors(tmp_path / "t.safetensors", tensors, {"kind": "test"})
    loaded = safetensors.torch.load_file(tmp_path / "t.safetensors")
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"[]", "not a JSON object"), (b"{", "is not JSON"), (None, "read")]
)
def test_a_json_file_without_an_object_is_a_study_error(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "spec.json").write_bytes(content)
    with pytest.raises(StudyError, match=reason):
        files.read_json(tmp_path / "spec.json")
