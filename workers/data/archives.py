"""Data sets that torchvision reads from its own files, taken into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from wiring.errors import DataError
from workers.data.arrays import ArrayData, Labels, Pixels, resize
from workers.data.base import default_root
from workers.spec import DataConfig


class Archive(NamedTuple):
    """Pixels uint8 [N, H, W, C] and labels [N] of both parts."""

    classes: tuple[str, ...]
    train: tuple[Pixels, Labels]
    test: tuple[Pixels, Labels]


def read_archive(config: DataConfig, reader: Callable[..., Any], folder: str) -> Archive:
    """A data set in memory.

    `reader` is a torchvision data set class whose files lie in `folder` under the data root.
    Raises DataError where they are missing or damaged, or cannot be downloaded.
    """
    root = config.root or default_root()
    if not config.download and not (root / folder).is_dir():
        raise DataError(
            f"{root / folder}: is missing; give the folder that holds {folder} with --data-root, "
            f"or fetch '{config.name}' with --download"
        )
    try:
        parts = [
            reader(str(root), train=train, download=config.download) for train in (True, False)
        ]
    except Exception as error:  # torchvision raises whatever its parsers do
        remedy = "" if config.download else "; --download fetches it again"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{root / folder}: cannot be read: {reason}{remedy}") from error
    train, test = (_arrays(part) for part in parts)
    return Archive(tuple(parts[0].classes), train, test)


def read_photographs(config: DataConfig, reader: Callable[..., Any], folder: str) -> ArrayData:
    """An archive of photographs as training sees it: at their own side unless one is given."""
    found = read_archive(config, reader, folder)
    side = config.side or found.train[0].shape[1]
    return ArrayData(
        config,
        classes=found.classes,
        train=(resize(found.train[0], side), found.train[1]),
        test=(resize(found.test[0], side), found.test[1]),
        flips=True,
    )


def _arrays(part: Any) -> tuple[Pixels, Labels]:
    pixels = np.asarray(part.data)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    return np.ascontiguousarray(pixels), np.asarray(part.targets, dtype=np.int64)
