"""What training sees of a data set, and the registry that finds one by name."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wiring.errors import DataError
from wiring.network import ImageShape
from wiring.registry import Registry
from workers.spec import DataConfig

Part = Literal["train", "val", "test"]
Indices = NDArray[np.int64]
Key = tuple[int, int, int]
Progress = Callable[[int, int], None]

# Tags that keep the streams of random numbers apart.
_ORDER, _AUGMENT, _SPLIT = 1, 2, 3


class ImageData(ABC):
    """Training, validation and test images of one data set, at one size.

    Picklable, whatever the size: pixels are numpy arrays or stay on disk. `digest` is a hex
    SHA-256 of the images and of how they are split. `augment` may be changed.
    """

    augment: bool

    def __init__(
        self,
        *,
        name: str,
        image: ImageShape,
        classes: tuple[str, ...],
        digest: str,
        counts: dict[Part, int],
    ) -> None:
        self.name = name
        self.image = image
        self.classes = classes
        self.digest = digest
        self.counts = counts

    def steps(self, batch_size: int) -> int:
        """Batches in one epoch; see `batches`."""
        return batches(self.counts["train"], batch_size)

    def train_batches(
        self, epoch: int, *, batch_size: int, seed: int, start_step: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised x float32 [N, C, H, W] and labels y int64 [N], from batch `start_step` on.

        The order depends on (seed, epoch), the augmentation on (seed, epoch, step), nothing else.
        """
        order = generator(_ORDER, seed, epoch).permutation(self.counts["train"])
        steps = range(start_step, self.steps(batch_size))
        plan = [order[step * batch_size : (step + 1) * batch_size] for step in steps]
        return self._batches("train", plan, [(seed, epoch, step) for step in steps])

    def val_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The held-out training images, in a fixed order, never augmented."""
        return self._in_order("val", batch_size)

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images, in a fixed order, never augmented."""
        return self._in_order("test", batch_size)

    def _in_order(self, part: Part, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = np.arange(self.counts[part])
        plan = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        return self._batches(part, plan, None)

    @abstractmethod
    def _batches(
        self, part: Part, plan: Sequence[Indices], keys: Sequence[Key] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch for each entry of `plan` (positions in the part); `keys` seed augmentation."""


class DataSet(ABC):
    """A data set that can be read by name. Subclasses live in workers/data/sets/<name>.py."""

    paper: ClassVar[str] = ""

    @abstractmethod
    def load(self, config: DataConfig, progress: Progress | None) -> ImageData:
        """Read and split it. Raises DataError, one sentence naming the path and the remedy."""


DATA: Registry[DataSet] = Registry("data set", package="workers.data.sets", group="wiring.data")


def load_data(config: DataConfig, progress: Progress | None = None) -> ImageData:
    """The data set of a config; `progress(done, all)` is told of slow decoding.

    Raises UnknownNameError or DataError.
    """
    return DATA.get(config.name)().load(config, progress)


def generator(*key: int) -> np.random.Generator:
    """Random numbers that depend on the key alone."""
    return np.random.default_rng(list(key))


def augmenter(key: Key, *rest: int) -> np.random.Generator:
    """The generator for a training batch's augmentation."""
    return generator(_AUGMENT, *key, *rest)


def splitter(purpose: int) -> np.random.Generator:
    """The generator for a split: the same for every trial, so that trials compare."""
    return generator(_SPLIT, purpose)


def default_root() -> Path:
    """Where downloads go when no --data-root is given."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "wiring"


def required_root(config: DataConfig) -> Path:
    """The data root of a set that cannot be downloaded. Raises DataError."""
    if config.root is None:
        raise DataError(f"data set '{config.name}' needs --data-root, the folder that holds it")
    if not config.root.is_dir():
        raise DataError(f"{config.root}: is not a folder; --data-root must name the images' folder")
    return config.root


def batches(images: int, batch_size: int) -> int:
    """How many batches images make: the last may be short, a single left-over image is dropped."""
    full, rest = divmod(images, batch_size)
    # Normalisation over one image at one position has no variance.
    return full + (1 if rest > 1 or (rest and not full) else 0)
