"""Small real searches, run as a user runs them: the command, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMES = {"time", "step_ms", "epoch_seconds"}

# A plug-in's operators: one raises, one finds the disk full, one kills its process once.
PLUGIN = '''
import os, signal
from pathlib import Path
from wiring.errors import StudyError
from wiring.graph.edges import EDGE_OPS
from wiring.methods.dense import Dense

@EDGE_OPS.register("raising")
class Raising(Dense):
    """Raises on the first forward pass."""
    def forward(self, x, live, learn):
        raise RuntimeError("this operator is broken")

@EDGE_OPS.register("filling")
class Filling(Dense):
    """Finds the disk full on the first forward pass, unless DYING_MARKER exists."""
    def forward(self, x, live, learn):
        if not Path(os.environ["DYING_MARKER"]).exists():
            raise StudyError("/there: cannot be written: No space left on device")
        return super().forward(x, live, learn)

@EDGE_OPS.register("dying")
class Dying(Dense):
    """Kills its process once, after 200 calls in training: in the second epoch."""
    calls = 0
    def forward(self, x, live, learn):
        marker = Path(os.environ["DYING_MARKER"])
        if self.training:
            Dying.calls += 1
            if Dying.calls == 200 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x, live, learn)
'''


def install_plugin(directory: Path) -> None:
    """Make PLUGIN importable and findable from `directory`, without pip."""
    info = directory / "breakable-0.1.dist-info"
    info.mkdir(parents=True)
    (directory / "breakable.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: breakable\nVersion: 0.1\n")
    points = "[wiring.edge_ops]\nraising = breakable:Raising\n"
    points += "dying = breakable:Dying\nfilling = breakable:Filling\n"
    (info / "entry_points.txt").write_text(points)


@dataclass
class Command:
    """A running `wiring` command."""

    process: subprocess.Popen[str]

    def end(self, timeout: float = 200) -> tuple[int, dict[str, Any] | None, str]:
        """Exit code, the record that --json printed, and what people were told."""
        out, err = self.process.communicate(timeout=timeout)
        lines = out.strip().splitlines()
        return self.process.returncode, json.loads(lines[-1]) if lines else None, err


def start(*arguments: str, cwd: Path, **environment: str) -> Command:
    """`wiring ARGUMENTS` in `cwd`, in a session of its own."""
    program = "import sys; from search.cli import main; sys.argv[0] = 'wiring'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Command(process)


def small(*more: str) -> list[str]:
    """Flags of a search of seconds, whose numbers do not depend on timing."""
    settings = ("data.limit=300", "train.batch_size=16")
    return [
        *("--epochs", "3", "--concurrent", "1", "--seed", "3", "--json"),
        *(flag for setting in settings for flag in ("--set", setting)),
        *more,
    ]


def wait_until(condition: Callable[[], bool], command: Command, timeout: float = 120) -> None:
    """Poll until it holds; fails when the command ends or time is up before."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert command.process.poll() is None, f"ended early: {command.end()}"
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def rows(trial: Path) -> list[dict[str, Any]]:
    """The epochs a trial has reported, without what depends on the clock."""
    path = trial / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in whole]
