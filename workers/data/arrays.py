"""Images that fit in memory, decoded once: uint8 arrays that processes can share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wiring.errors import DataError
from wiring.network import ImageShape
from workers.data.base import ImageData, Indices, Key, Part, augmenter
from workers.data.split import hold_out_test, hold_out_validation
from workers.spec import DataConfig

PADDING = 4
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


class ArrayData(ImageData):
    """All images as uint8 [N, H, W, C], so that a batch is born channels-last.

    `flips` says whether a mirrored image is still of its class; it matters where
    `config.augment` asks for random crops (padding 4) and flips.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        classes: Sequence[str],
        train: tuple[Pixels, Labels],
        test: tuple[Pixels, Labels] | None,
        flips: bool,
    ) -> None:
        """`train` is split further: validation, and test images where `test` is None."""
        pixels, labels = train
        names = tuple(classes)
        if test is None:
            pool, out = hold_out_test(config, labels, names)
            test = pixels[out], labels[out]
        else:
            pool = np.arange(len(labels))
        training, validation = hold_out_validation(config, labels, pool, names)
        if not len(test[1]):
            raise DataError(f"data set '{config.name}' has no test images")
        parts: dict[Part, tuple[Pixels, Labels]] = {
            "train": (pixels[training], labels[training]),
            "val": (pixels[validation], labels[validation]),
            "test": test,
        }
        super().__init__(
            name=config.name,
            image=ImageShape(channels=pixels.shape[3], side=pixels.shape[1]),
            classes=names,
            digest=_digest(names, parts),
            counts={part: len(labels) for part, (_, labels) in parts.items()},
        )
        self.parts = parts
        self.augment = bool(config.augment)
        self.flips = flips
        self.mean, self.std = moments(parts["train"][0])

    def _batches(
        self, part: Part, plan: Sequence[Indices], keys: Sequence[Key] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        pixels, labels = self.parts[part]
        for position, index in enumerate(plan):
            batch = pixels[index]
            if keys is not None and self.augment:
                batch = crop_and_flip(batch, augmenter(keys[position]), flips=self.flips)
            yield normalise(batch, self.mean, self.std), torch.from_numpy(labels[index])


def normalise(batch: Pixels, mean: NDArray[np.float32], std: NDArray[np.float32]) -> Tensor:
    """uint8 [N, H, W, C] → float32 [N, C, H, W] in channels-last memory, (x - mean) / std."""
    x = torch.from_numpy(batch).to(torch.float32)
    return x.sub_(torch.tensor(mean)).div_(torch.tensor(std)).permute(0, 3, 1, 2)


def moments(pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each channel, exact; a constant channel's deviation is 1."""
    value = np.arange(256)
    channels = range(pixels.shape[3])
    counts = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in channels])
    total = counts.sum(axis=1)
    mean = (counts * value).sum(axis=1) / total
    variance = (counts * value**2).sum(axis=1) / total - mean**2
    std = np.sqrt(np.where((counts > 0).sum(axis=1) == 1, 1.0, variance))
    return mean.astype(np.float32), std.astype(np.float32)


def crop_and_flip(batch: Pixels, random: np.random.Generator, *, flips: bool) -> Pixels:
    """Each image shifted by up to 4 pixels over black; where `flips`, half are mirrored."""
    count, height, width, _ = batch.shape
    edge = (PADDING, PADDING)
    padded = np.pad(batch, ((0, 0), edge, edge, (0, 0)))
    top, left = random.integers(0, 2 * PADDING + 1, (2, count, 1))
    mirrored = random.random((count, 1)) < 0.5 if flips else np.zeros((count, 1), bool)
    rows = top + np.arange(height)
    columns = left + np.where(mirrored, np.arange(width)[::-1], np.arange(width))
    cropped: Pixels = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None]]
    return cropped


def resize(pixels: Pixels, side: int) -> Pixels:
    """Bilinear, antialiased where it shrinks; [N, H, W, C] → [N, side, side, C]."""
    if pixels.shape[1:3] == (side, side):
        return pixels
    shrinks = side < max(pixels.shape[1:3])
    scaled = []
    for start in range(0, len(pixels), 1024):
        chunk = torch.tensor(pixels[start : start + 1024]).permute(0, 3, 1, 2).to(torch.float32)
        chunk = F.interpolate(chunk, (side, side), mode="bilinear", antialias=shrinks)
        scaled.append(chunk.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.ascontiguousarray(np.concatenate(scaled))


def _digest(classes: tuple[str, ...], parts: dict[Part, tuple[Pixels, Labels]]) -> str:
    digest = hashlib.sha256("\n".join(classes).encode())
    for part, (pixels, labels) in parts.items():
        digest.update(f"{part} {pixels.shape}".encode())
        digest.update(np.ascontiguousarray(pixels).data)
        digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
