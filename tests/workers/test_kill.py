"""A trial killed with SIGKILL and started again ends with the numbers of one that ran through."""

from __future__ import annotations

import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from small_trials import fork_server, outcome, run_child, run_quietly, small_spec

from workers.spec import TrialSpec


def start(spec: TrialSpec, directory: Path, *, die_at: int | None = None) -> BaseProcess:
    process = fork_server().Process(
        target=run_child, args=(spec.to_dict(), str(directory), die_at), daemon=True
    )
    process.start()
    return process


def test_killed_at_every_kind_of_file_operation_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    spec = small_spec(checkpoint_steps=2)
    run_quietly(spec, tmp_path / "whole")
    kills, exitcode = 0, None
    while exitcode != 0:
        # One operation later each time, so that a death is seen at every point between two saves.
        child = start(spec, tmp_path / "killed", die_at=kills + 1)
        child.join()
        exitcode = child.exitcode
        assert exitcode in (0, -9)
        kills += exitcode == -9
    assert kills > 10
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path, seed: int) -> None:
    spec = small_spec(epochs=8, limit=400, batch_size=16, checkpoint_steps=5, seed=seed)
    run_quietly(spec, tmp_path / "whole")
    killed, moments, reached = tmp_path / "killed", random.Random(seed), []
    for attempt in range(1, 9):
        child = start(spec, killed)
        folder = killed / "checkpoints" / f"attempt-{attempt:04d}"
        while child.is_alive() and not folder.is_dir():
            time.sleep(0.001)
        deadline = time.monotonic() + moments.uniform(0.0, 0.3)
        while child.is_alive():
            # Every other time in the midst of a checkpoint.
            writing = attempt % 2 or any(folder.glob(".tmp-*"))
            if time.monotonic() >= deadline and writing:
                break
        child.kill()
        child.join()
        stored = sorted(killed.glob("checkpoints/attempt-*/step-*"))
        reached.append(stored[-1].name if stored else "nothing")
    last = start(spec, killed)
    last.join()
    assert last.exitcode == 0
    assert outcome(killed) == outcome(tmp_path / "whole"), f"killed after {reached}"
    print(f"killed after {reached}")
