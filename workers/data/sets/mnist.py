"""MNIST from torchvision's files, its 28x28 images padded to 32x32 unless `side` is given."""

from __future__ import annotations

import numpy as np

from workers.data.archives import read_archive
from workers.data.arrays import ArrayData, Pixels, resize
from workers.data.base import DATA, DataSet, ImageData, Progress
from workers.spec import DataConfig

SIDE = 32


@DATA.register("mnist")
class Mnist(DataSet):
    """60,000 + 10,000 handwritten digits."""

    paper = "LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning, Proc. IEEE 1998"

    def load(self, config: DataConfig, progress: Progress | None) -> ImageData:
        from torchvision.datasets import MNIST

        _, train, test = read_archive(config, MNIST, "MNIST")
        side = config.side or SIDE
        return ArrayData(
            config,
            classes=[str(digit) for digit in range(10)],
            train=(_to_side(train[0], side), train[1]),
            test=(_to_side(test[0], side), test[1]),
            flips=False,
        )


def _to_side(pixels: Pixels, side: int) -> Pixels:
    """Black around the digit where there is room for it, else bilinear."""
    room = side - pixels.shape[1]
    if room < 0:
        return resize(pixels, side)
    edge = (room // 2, room - room // 2)
    return np.pad(pixels, ((0, 0), edge, edge, (0, 0)))
