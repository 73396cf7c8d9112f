"""Files that are whole or absent, and lines that are synced when they are appended.

Every function raises StudyError, one sentence with the path, where the disk is full or the
place cannot be written; what stood there before is then untouched.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from wiring.errors import StudyError
from wiring.files import sync_directory, write_atomic


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError inside into StudyError's sentence about `path`."""
    try:
        yield
    except OSError as error:
        raise StudyError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file at once; its directory is made where it is missing."""
    with writing(path):
        write_atomic(path, data)


def write_text(path: Path, text: str) -> None:
    """Replace a text file (UTF-8) at once."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file at once; NaN and infinities are refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Replace a safetensors file at once; tensors may lie on any device and share memory."""
    write_bytes(path, pack_tensors(tensors, metadata))


def pack_tensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file."""
    plain = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    packed: bytes = save(plain, metadata)
    return packed


def append_line(path: Path, value: Any) -> None:
    """Append one JSON object as a line and sync it; a torn last line is cut off first."""
    line = json.dumps(value, allow_nan=False).encode() + b"\n"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        created = not path.exists()
        with path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            whole = _whole_length(file.read, file.seek, end)
            if whole != end:
                file.truncate(whole)
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(whole)
                raise
        if created:
            sync_directory(path.parent)


def _whole_length(read: Any, seek: Any, end: int) -> int:
    """Bytes up to and including the last newline, looked for from the end."""
    position = end
    while position:
        start = max(0, position - 4096)
        seek(start)
        newline: int = read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines; [] where it is missing; a torn last line is ignored.

    Raises StudyError for a whole line that is no JSON object.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
    *whole, _torn = data.split(b"\n")
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise StudyError(f"{path}: line {number} is not a JSON object")
        rows.append(row)
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object. Raises StudyError where it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError:
        raise StudyError(f"{path}: is not JSON") from None
    if not isinstance(value, dict):
        raise StudyError(f"{path}: is not a JSON object")
    return value
