"""What determines a trial: a network, how it is trained, on what, and from which seed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from wiring.config import Component, Config
from wiring.network import ModelSpec


class TrainConfig(Config):
    """Stochastic gradient descent and its schedule (Wortsman 2019 settings as defaults).

    `schedule` acts per iteration: `cosine` to 0 over all epochs; `step` times `decay` at each
    epoch in `milestones`; `constant`. The rate rises linearly over `warmup_epochs` first.
    Before every validation the batch norms' moments are measured anew over `calibration_images`
    training images: a swapped edge shifts a node's mean at once, and the running averages of
    training lag behind. 0 keeps the running averages.

    A checkpoint is written after every epoch, and after every `checkpoint_steps` steps where
    epochs are long. `threads` is fixed, since sums on a CPU depend on it. `device` auto is a GPU
    where there is one; `mixed_precision` (float16 with a loss scaler) needs one. `removal` is the
    share of training after which a node rule, where there is one, removes nodes.
    """

    epochs: PositiveInt = 12
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[PositiveInt, ...] = ()
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: NonNegativeFloat = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: PositiveFloat | None = None
    mixed_precision: bool = False
    calibration_images: NonNegativeInt = 512
    checkpoint_steps: PositiveInt | None = None
    threads: PositiveInt = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    removal: Annotated[float, Field(gt=0, lt=1)] = 0.5


class DataConfig(Config):
    """A data set by name. `validation` is the share of training images held out.

    `test` is the share held out for testing where a set brings no test images of its own.
    `limit` keeps only that many training images (before the split), for short experiments.
    `side` in pixels is the set's own by default. `loaders` processes decode a set too large for
    memory. `augment` None leaves it to the space, and means no where there is none. A relative
    `root` is taken from the directory in which the config was read.
    """

    name: str = "digits"
    root: Path | None = None
    download: bool = False
    side: PositiveInt | None = None
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    limit: PositiveInt | None = None
    augment: bool | None = None
    loaders: NonNegativeInt = 2

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path | None) -> Path | None:
        return None if root is None else root.expanduser().absolute()


class TrialSpec(Config):
    """A trial is reproducible from this alone: same spec, same numbers on a CPU.

    With a `node_rule` the network that it ends with has fewer nodes than `model`.
    """

    model: ModelSpec
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    seed: NonNegativeInt = 0
    node_rule: Component | None = None

    def digest(self) -> str:
        """Hex SHA-256 of all that decides the numbers: not where the data lie or are read from."""
        plain = self.to_dict()
        for key in ("root", "download", "loaders"):
            del plain["data"][key]
        if self.node_rule is None:  # as before there were any
            del plain["node_rule"], plain["train"]["removal"]
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
