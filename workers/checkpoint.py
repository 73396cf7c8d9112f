"""Checkpoints of one trial: whole or absent, checked on reading, fenced against old writers.

    checkpoints/attempt-0002/step-00000038/{tensors.safetensors, state.json}

Every start of a trial is an *attempt* with a folder and a number of its own, claimed by making
the folder. An attempt writes into its own folder only, and deletes nothing of a later one; so a
worker that was cut off and replaced, and does not know it, can neither hide nor destroy what its
successor wrote. A later attempt's checkpoint always counts as the newer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from wiring.errors import CheckpointError, StudyError
from wiring.files import TEMPORARY, sync_directory, temporary_beside, write_synced
from workers.files import pack_tensors, writing

log = logging.getLogger(__name__)

VERSION = 1
KEEP = 2
TENSORS, STATE = "tensors.safetensors", "state.json"
_ATTEMPT = re.compile(r"attempt-(\d{4,})")
_STEP = re.compile(r"step-(\d{8,})")


class Damaged(Exception):
    """A checkpoint's files are not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """`tensors`, and `state` of plain JSON values, after `step` optimiser steps of the trial."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of a trial, seen from one attempt at it.

    `digest` identifies what is trained; a checkpoint of anything else is refused.
    """

    def __init__(self, root: Path, digest: str) -> None:
        """Claims the next attempt. Raises StudyError where `root` cannot be written."""
        self.root = root
        self.digest = digest
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            self.attempt = self._claim()
            self.folder = root / f"attempt-{self.attempt:04d}"
            sync_directory(root)

    def _claim(self) -> int:
        number = max(self._attempts(), default=0)
        while True:
            number += 1
            try:
                (self.root / f"attempt-{number:04d}").mkdir()
            except FileExistsError:
                continue
            return number

    def _attempts(self) -> list[int]:
        found = (_ATTEMPT.fullmatch(entry.name) for entry in self.root.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _stored(self, until: int | None = None) -> list[Path]:
        """Checkpoint folders of the attempts up to `until`, oldest first."""
        found = []
        for attempt in self._attempts():
            if until is not None and attempt > until:
                continue
            folder = self.root / f"attempt-{attempt:04d}"
            steps = (_STEP.fullmatch(entry.name) for entry in folder.iterdir())
            found += [(attempt, int(match[1]), folder / match[0]) for match in steps if match]
        return [path for _, _, path in sorted(found)]

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none.

        A damaged one is passed over with a warning. Raises CheckpointError for a checkpoint that
        belongs to another trial.
        """
        stored = self._stored()
        for path in reversed(stored):
            try:
                return self._read(path)
            except Damaged as damage:
                log.warning("checkpoint %s is damaged (%s); an older one is used", path, damage)
        if stored:
            log.warning("no checkpoint in %s is whole; training starts anew", self.root)
        return None

    def _read(self, path: Path) -> Checkpoint:
        try:
            record = json.loads((path / STATE).read_bytes())
            data = (path / TENSORS).read_bytes()
            version, state, step = record["version"], record["state"], int(record["step"])
            trial, checks = record["trial"], (record["sha256"], record["state_sha256"])
        except OSError as error:
            raise Damaged(error.strerror) from None
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{STATE} is not what was written") from None
        if checks != (hashlib.sha256(data).hexdigest(), _sha256(state)):
            raise Damaged("its checksum differs")
        if version != VERSION:
            raise CheckpointError(f"{path}: is of version {version}, this is version {VERSION}")
        if trial != self.digest:
            raise CheckpointError(
                f"{path}: belongs to trial {trial[:12]}, not to {self.digest[:12]}; "
                "another spec needs another directory"
            )
        try:
            return Checkpoint(step, safetensors.torch.load(data), state)
        except SafetensorError as error:
            raise Damaged(str(error)) from None

    def check_current(self) -> None:
        """Raises StudyError if a later attempt has taken this trial over."""
        latest = max(self._attempts(), default=self.attempt)
        if latest > self.attempt:
            raise StudyError(
                f"{self.root}: attempt {self.attempt} was replaced by attempt {latest} and ends"
            )

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint and drop all but the newest two.

        Raises StudyError where it cannot be written (the earlier ones stay valid), or where this
        attempt has been replaced.
        """
        self.check_current()
        data = pack_tensors(tensors)
        record = {
            "version": VERSION,
            "trial": self.digest,
            "step": step,
            "sha256": hashlib.sha256(data).hexdigest(),
            "state_sha256": _sha256(state),
            "state": state,
        }
        path = self.folder / f"step-{step:08d}"
        aside = temporary_beside(path)
        with writing(path):
            try:
                aside.mkdir()
                write_synced(aside / TENSORS, data)
                write_synced(aside / STATE, json.dumps(record, allow_nan=False).encode())
                sync_directory(aside)
                aside.rename(path)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            sync_directory(self.folder)
        self._prune()

    def _prune(self) -> None:
        for path in self._stored(until=self.attempt)[:-KEEP]:
            # Out of sight first, so that nobody takes a half-deleted one for a checkpoint.
            doomed = temporary_beside(path)
            try:
                path.rename(doomed)
            except OSError as error:
                log.warning("checkpoint %s cannot be deleted: %s", path, error.strerror)
        for attempt in range(1, self.attempt + 1):
            for left in (self.root / f"attempt-{attempt:04d}").glob(f"{TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)


def _sha256(state: Any) -> str:
    text = json.dumps(state, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
