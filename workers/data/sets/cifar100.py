"""CIFAR-100 from torchvision's files."""

from __future__ import annotations

from workers.data.archives import read_archive
from workers.data.arrays import ArrayData, resize
from workers.data.base import DATA, DataSet, ImageData, Progress
from workers.spec import DataConfig

SIDE = 32


@DATA.register("cifar100")
class Cifar100(DataSet):
    """50,000 + 10,000 small colour photographs of 100 classes."""

    paper = "Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009"

    def load(self, config: DataConfig, progress: Progress | None) -> ImageData:
        from torchvision.datasets import CIFAR100

        found = read_archive(config, CIFAR100, CIFAR100.base_folder)
        side = config.side or SIDE
        return ArrayData(
            config,
            classes=found.classes,
            train=(resize(found.train[0], side), found.train[1]),
            test=(resize(found.test[0], side), found.test[1]),
            flips=True,
        )
