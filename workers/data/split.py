"""Which images train, validate and test: stratified by class, fixed by the config alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wiring.errors import DataError
from workers.data.base import Indices, splitter
from workers.spec import DataConfig

_TEST, _VALIDATION, _LIMIT = 1, 2, 3


def check_labels(config: DataConfig, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    """Raises DataError unless there are two classes, and enough images of each to be split."""
    if len(classes) < 2:
        raise DataError(
            f"data set '{config.name}' has only the class '{classes[0]}'; "
            "a classifier needs at least 2 classes"
            if classes
            else f"data set '{config.name}' has no classes"
        )
    counts = np.bincount(labels, minlength=len(classes))
    poorest = int(counts.argmin())
    if counts[poorest] < 2:
        raise DataError(
            f"class '{classes[poorest]}' of data set '{config.name}' has {counts[poorest]} "
            "training images; at least 2 are needed, 1 to train and 1 to validate"
        )


def hold_out(
    labels: NDArray[np.int64], among: Indices, share: float, purpose: int
) -> tuple[Indices, Indices]:
    """(kept, held out), both ascending: `share` of each class, at least one image and not all."""
    random = splitter(purpose)
    held = []
    for label in np.unique(labels[among]):
        members = among[labels[among] == label]
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held.append(random.permutation(members)[:count])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(among, out), out


def hold_out_test(
    config: DataConfig, labels: NDArray[np.int64], classes: tuple[str, ...]
) -> tuple[Indices, Indices]:
    """(training pool, test images) of a set that has no test images. Raises DataError."""
    check_labels(config, labels, classes)
    return hold_out(labels, np.arange(len(labels)), config.test, _TEST)


def hold_out_validation(
    config: DataConfig, labels: NDArray[np.int64], pool: Indices, classes: tuple[str, ...]
) -> tuple[Indices, Indices]:
    """(training images, validation images) of a pool, after `config.limit`. Raises DataError."""
    pool = _limited(config, labels, pool, classes)
    check_labels(config, labels[pool], classes)
    return hold_out(labels, pool, config.validation, _VALIDATION)


def _limited(
    config: DataConfig, labels: NDArray[np.int64], pool: Indices, classes: tuple[str, ...]
) -> Indices:
    if config.limit is None or config.limit >= len(pool):
        return pool
    if config.limit < 2 * len(classes):
        raise DataError(
            f"limit must be at least 2 training images for each of {len(classes)} classes, "
            f"got {config.limit}"
        )
    shuffled = splitter(_LIMIT).permutation(pool)
    quantile = np.empty(len(shuffled))
    for label in range(len(classes)):
        members = labels[shuffled] == label
        count = int(members.sum())
        quantile[members] = (np.arange(count) + 0.5) / max(count, 1)
    return np.sort(shuffled[np.argsort(quantile, kind="stable")[: config.limit]])
