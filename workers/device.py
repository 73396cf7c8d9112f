"""Where a trial computes, and the random numbers it starts from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wiring.errors import ConfigError
from workers.spec import TrainConfig


def pick_device(train: TrainConfig) -> torch.device:
    """The first visible GPU, or the CPU. Raises ConfigError for a GPU asked for and not there."""
    has_gpu = torch.cuda.is_available()
    if train.device == "cuda" and not has_gpu:
        raise ConfigError("device 'cuda' was asked for, but no GPU is visible to this process")
    name = ("cuda" if has_gpu else "cpu") if train.device == "auto" else train.device
    if train.mixed_precision and name == "cpu":
        raise ConfigError("mixed_precision needs a GPU, and this trial would run on the CPU")
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Start the global generators of PyTorch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_state() -> dict[str, Tensor]:
    """The state of every global generator, as tensors."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = legacy
    assert (version, name) == (3, "MT19937")
    state = {
        "torch": torch.get_rng_state(),
        "python.words": torch.tensor(words),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy.keys": torch.from_numpy(keys.astype(np.int64)),
        "numpy.position": torch.tensor([position, has_gauss]),
        "numpy.gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Inverse of `rng_state`; a GPU's generator is left alone where none was saved."""
    torch.set_rng_state(state["torch"])
    gauss = state["python.gauss"].tolist()
    random.setstate((3, tuple(state["python.words"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = state["numpy.position"].tolist()
    keys = state["numpy.keys"].numpy().astype(np.uint32)
    cached = float(state["numpy.gauss"])
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
