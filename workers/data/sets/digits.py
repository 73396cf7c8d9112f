"""scikit-learn's built-in digits: 1,797 images, 8x8, enlarged to 32x32 unless `side` is given."""

from __future__ import annotations

import numpy as np

from workers.data.arrays import ArrayData, resize
from workers.data.base import DATA, DataSet, ImageData, Progress
from workers.spec import DataConfig

SIDE = 32
BRIGHTEST = 16


@DATA.register("digits")
class Digits(DataSet):
    """1,797 handwritten digits, built in; a share is held out for testing."""

    paper = "Alpaydin, Kaynak: Cascading Classifiers, Kybernetika 1998"

    def load(self, config: DataConfig, progress: Progress | None) -> ImageData:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = np.round(bunch.images * (255 / BRIGHTEST)).astype(np.uint8)[..., None]
        labels = bunch.target.astype(np.int64)
        return ArrayData(
            config,
            classes=[str(digit) for digit in range(10)],
            train=(resize(pixels, config.side or SIDE), labels),
            test=None,
            flips=False,
        )
