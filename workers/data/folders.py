"""ImageFolder data sets: into memory where they fit, streamed where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wiring.errors import DataError
from wiring.network import ImageShape
from workers.data.arrays import ArrayData, Pixels
from workers.data.base import ImageData, Progress
from workers.data.listing import Listing, fit, image_size, in_threads, list_images, open_image
from workers.data.stream import StreamData
from workers.spec import DataConfig

MEMORY_BYTES = 2 * 2**30
CHANNELS = 3


def list_parts(root: Path) -> tuple[Listing, Listing | None]:
    """Training images and, where there is such a folder, those of test/, else of val/.

    Without a folder train/ all classes lie in `root`. Raises DataError, also where the two parts
    have different classes.
    """
    if not (root / "train").is_dir():
        return list_images(root), None
    train = list_images(root / "train")
    held = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if held is None:
        return train, None
    test = list_images(held)
    odd = sorted(set(train.classes) ^ set(test.classes))
    if odd:
        present = "train" if odd[0] in train.classes else held.name
        raise DataError(f"{root}: class '{odd[0]}' is in {present}/ only")
    return train, test


def load_folder(
    config: DataConfig, root: Path, progress: Progress | None, *, side: int | None, zoom: float
) -> ImageData:
    """The images of a root, square of `side` pixels; None takes the size that all of them have.

    Up to 2 GiB of pixels are decoded at once, more are read from disk as they are needed.
    """
    train, test = list_parts(root)
    parts = [train] if test is None else [train, test]
    count = sum(len(part.labels) for part in parts)
    first = image_size(train.path(0))
    pixels = (side * side if side else first[0] * first[1]) * CHANNELS
    if count * pixels > MEMORY_BYTES:
        if side is None:
            for part in parts:
                paths = map(part.path, range(len(part.labels)))
                for position, size in enumerate(in_threads(image_size, paths)):
                    _check_size(train.path(0), first, part.path(position), size)
            side = first[0]
        image = ImageShape(channels=CHANNELS, side=side)
        return StreamData(config, image=image, train=train, test=test, zoom=zoom)
    decoded, done = [], 0
    for part in parts:
        decoded.append(_decode(part, (train.path(0), first), side, zoom, progress, done, count))
        done += len(part.labels)
    return ArrayData(
        config,
        classes=train.classes,
        train=(decoded[0], train.labels),
        test=None if test is None else (decoded[1], test.labels),
        flips=True,
    )


def _decode(
    part: Listing,
    first: tuple[Path, tuple[int, int]],
    side: int | None,
    zoom: float,
    progress: Progress | None,
    done: int,
    count: int,
) -> Pixels:
    reference, size = first
    if side is None:
        _check_size(reference, size, reference, size)

    def read(position: int) -> Pixels:
        path = part.path(position)
        image = open_image(path)
        if side is None:
            _check_size(reference, size, path, image.size)
        return fit(image, side or size[0], zoom)

    length = side or size[0]
    pixels = np.empty((len(part.labels), length, length, CHANNELS), np.uint8)
    for position, image in enumerate(in_threads(read, range(len(part.labels)))):
        pixels[position] = image
        if progress:
            progress(done + position + 1, count)
    return pixels


def _check_size(reference: Path, size: tuple[int, int], path: Path, other: tuple[int, int]) -> None:
    if other != size:
        raise DataError(
            f"images differ in size: {reference} is {size[0]}x{size[1]}, {path} is "
            f"{other[0]}x{other[1]}; --set data.side=N resizes all to NxN"
        )
    if size[0] != size[1]:
        raise DataError(
            f"{reference}: is {size[0]}x{size[1]}, not square; --set data.side=N crops all to NxN"
        )
