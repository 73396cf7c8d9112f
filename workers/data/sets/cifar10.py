"""CIFAR-10 from torchvision's files."""

from __future__ import annotations

from workers.data.archives import read_photographs
from workers.data.base import DATA, DataSet, ImageData, Progress
from workers.spec import DataConfig


@DATA.register("cifar10")
class Cifar10(DataSet):
    """50,000 + 10,000 small colour photographs of 10 classes."""

    paper = "Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009"

    def load(self, config: DataConfig, progress: Progress | None) -> ImageData:
        from torchvision.datasets import CIFAR10

        return read_photographs(config, CIFAR10, CIFAR10.base_folder)
