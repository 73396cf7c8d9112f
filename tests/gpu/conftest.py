"""Two processes, once a session each: Triton decides when it is imported whether it interprets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import wiring

ROOT = Path(__file__).parents[2]
PACKAGE = Path(wiring.__file__).parents[1]
SECONDS = 280


def run_worker(name: str, cache: Path) -> dict[str, Any]:
    """What tests.gpu.<name> prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # The package that is under test here, and the tests beside it.
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), str(ROOT)])
    environment["TRITON_CACHE_DIR"] = str(cache)  # empty, so that everything is compiled anew
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.gpu.{name}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{case: what is wrong}."""
    return run_worker("interpret_worker", tmp_path_factory.mktemp("interpreted"))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """{architecture and launch: figures}."""
    return run_worker("compile_worker", tmp_path_factory.mktemp("compiled"))
