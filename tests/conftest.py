"""Settings that every test needs: no telemetry, short MLflow retries, one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Child processes, too, run the installed packages and not the sources where they are started.
os.environ["PYTHONSAFEPATH"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def seeded() -> Iterator[None]:
    """A fixed state of PyTorch's generator, restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
