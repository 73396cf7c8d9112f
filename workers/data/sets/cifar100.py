"""CIFAR-100 from torchvision's files."""

from __future__ import annotations

from workers.data.archives import read_photographs
from workers.data.base import DATA, DataSet, ImageData, Progress
from workers.spec import DataConfig


@DATA.register("cifar100")
class Cifar100(DataSet):
    """50,000 + 10,000 small colour photographs of 100 classes."""

    paper = "Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009"

    def load(self, config: DataConfig, progress: Progress | None) -> ImageData:
        from torchvision.datasets import CIFAR100

        return read_photographs(config, CIFAR100, CIFAR100.base_folder)
