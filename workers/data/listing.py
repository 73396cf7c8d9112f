"""Image files in one folder per class: what is there, and the pixels of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wiring.errors import DataError
from workers.data.arrays import Labels, Pixels

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
T = TypeVar("T")
R = TypeVar("R")


class Listing(NamedTuple):
    """Files (paths below `root`, encoded, sorted) with labels and sizes in bytes."""

    root: Path
    classes: tuple[str, ...]
    files: NDArray[np.bytes_]
    labels: Labels
    sizes: NDArray[np.int64]

    def path(self, position: int) -> Path:
        return self.root / os.fsdecode(self.files[position])


def list_images(root: Path) -> Listing:
    """The images in root/<class>/. Raises DataError for no class folders or an empty one."""
    try:
        classes = sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")
        if not classes:
            raise DataError(f"{root}: has no class folders; images belong in {root}/<class>/")
        files, labels, sizes = [], [], []
        for label, name in enumerate(classes):
            entries = os.scandir(root / name)
            found = sorted(
                (e.name, e.stat().st_size)
                for e in entries
                if Path(e.name).suffix.lower() in SUFFIXES and e.is_file()
            )
            if not found:
                raise DataError(f"{root / name}: class '{name}' has no images")
            files += [os.fsencode(f"{name}/{file}") for file, _ in found]
            labels += [label] * len(found)
            sizes += [size for _, size in found]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return Listing(root, tuple(classes), np.array(files), np.array(labels), np.array(sizes))


def open_image(path: Path) -> Image.Image:
    """A decoded RGB image. Raises DataError, naming the file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # a damaged file raises whatever its decoder does
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as an image: {reason}") from error


def image_size(path: Path) -> tuple[int, int]:
    """(width, height), from the header alone. Raises DataError."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise DataError(f"{path}: cannot be read as an image") from error


def fit(image: Image.Image, side: int, zoom: float = 1.0) -> Pixels:
    """The central square [side, side, 3], after the shorter side was resized to side * zoom."""
    if image.size != (side, side) or zoom != 1:
        shorter = round(side * zoom)
        scale = shorter / min(image.size)
        width, height = (max(shorter, round(length * scale)) for length in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)


def random_fit(image: Image.Image, side: int, random: np.random.Generator) -> Pixels:
    """A random part of 8-100% of the area, 3:4 to 4:3, resized to [side, side, 3]; half mirrored.

    The augmentation of Szegedy et al. 2015; where no part of that shape fits, the central square.
    """
    width, height = image.size
    mirrored = random.random() < 0.5
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            box = (left, top, left + w, top + h)
            pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
            break
    else:
        pixels = fit(image, side)
    return pixels[:, ::-1] if mirrored else pixels


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """function over items, in order; decoders release Python's lock, so threads help."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            yield from pool.map(function, items)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
