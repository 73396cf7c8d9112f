"""Images too many for memory: decoded as they are needed, by PyTorch's loader processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wiring.errors import DataError
from wiring.network import ImageShape
from workers.data.arrays import Labels, Pixels, moments, normalise
from workers.data.base import ImageData, Indices, Key, Part, augmenter, splitter
from workers.data.listing import Listing, fit, in_threads, open_image, random_fit
from workers.data.split import hold_out_test, hold_out_validation
from workers.spec import DataConfig

_MOMENTS = 4
MOMENT_IMAGES = 2048
Item = tuple[int, tuple[int, int, int, int] | None]
Decoded = tuple[Pixels, int] | str


class StreamData(ImageData):
    """Images that stay in their files. With `config.augment`, training sees random resized crops.

    Normalised by mean and deviation of 2048 training images (a fixed choice). The digest covers
    the files' names and sizes, not their bytes.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        image: ImageShape,
        train: Listing,
        test: Listing | None,
        zoom: float,
    ) -> None:
        """Images are resized to side * `zoom` and cropped to the side."""
        if test is None:
            pool, out = hold_out_test(config, train.labels, train.classes)
            test_part = train, out
        else:
            pool, test_part = np.arange(len(train.labels)), (test, np.arange(len(test.labels)))
        training, validation = hold_out_validation(config, train.labels, pool, train.classes)
        self.parts: dict[Part, tuple[Listing, Indices]] = {
            "train": (train, training),
            "val": (train, validation),
            "test": test_part,
        }
        super().__init__(
            name=config.name,
            image=image,
            classes=train.classes,
            digest=_digest(image.side, zoom, self.parts),
            counts={part: len(index) for part, (_, index) in self.parts.items()},
        )
        self.augment, self.loaders, self.zoom = bool(config.augment), config.loaders, zoom
        sample = splitter(_MOMENTS).permutation(training)[:MOMENT_IMAGES]
        reader = _Reader(train, np.sort(sample), image.side, zoom, augment=False)
        decoded = list(in_threads(reader.decode, [(i, None) for i in range(len(sample))]))
        self.mean, self.std = moments(np.stack([pixels for pixels, _ in decoded]))

    def _batches(
        self, part: Part, plan: Sequence[Indices], keys: Sequence[Key] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        listing, index = self.parts[part]
        augment = self.augment and keys is not None
        loader: DataLoader[Decoded] = DataLoader(
            _Reader(listing, index, self.image.side, self.zoom, augment=augment),
            batch_sampler=_Plan(plan, keys),
            num_workers=self.loaders,
            collate_fn=_collate,
            # Its own, else the loader would draw from the trial's global generator.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, str):
                raise DataError(batch)
            pixels, labels = batch
            yield normalise(pixels, self.mean, self.std), torch.from_numpy(labels)


class _Plan:
    """The items of each batch, with the key of each image's random numbers."""

    def __init__(self, plan: Sequence[Indices], keys: Sequence[Key] | None) -> None:
        self.plan, self.keys = plan, keys

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[Item]]:
        for step, index in enumerate(self.plan):
            key = self.keys[step] if self.keys else None
            yield [(int(i), (*key, at) if key else None) for at, i in enumerate(index)]


class _Reader(Dataset[Decoded]):
    def __init__(
        self, listing: Listing, index: Indices, side: int, zoom: float, *, augment: bool
    ) -> None:
        self.listing, self.index = listing, index
        self.side, self.zoom, self.augment = side, zoom, augment

    def decode(self, item: Item) -> tuple[Pixels, int]:
        position, key = item
        at = int(self.index[position])
        image = open_image(self.listing.path(at))
        if self.augment and key is not None:
            seed, epoch, step, place = key
            pixels = random_fit(image, self.side, augmenter((seed, epoch, step), place))
        else:
            pixels = fit(image, self.side, self.zoom)
        return pixels, int(self.listing.labels[at])

    def __getitem__(self, item: Item) -> Decoded:
        try:
            return self.decode(item)
        except DataError as error:
            # As text: an exception out of a loader process arrives with its traceback in it.
            return str(error)


def _collate(items: list[Decoded]) -> tuple[Pixels, Labels] | str:
    images, labels = [], []
    for item in items:
        if isinstance(item, str):
            return item
        images.append(item[0])
        labels.append(item[1])
    return np.stack(images), np.array(labels)


def _digest(side: int, zoom: float, parts: dict[Part, tuple[Listing, Indices]]) -> str:
    digest = hashlib.sha256(f"{side} {zoom}".encode())
    for part, (listing, index) in parts.items():
        digest.update(part.encode())
        digest.update(b"\n".join(listing.files[index].tolist()))
        digest.update(listing.sizes[index].data)
    return digest.hexdigest()
