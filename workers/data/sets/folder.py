"""A user's own images: root/train/<class>/ with root/test/ or root/val/, or only root/<class>/."""

from __future__ import annotations

from workers.data.base import DATA, DataSet, ImageData, Progress, required_root
from workers.data.folders import load_folder
from workers.spec import DataConfig


@DATA.register("folder")
class Folder(DataSet):
    """Your own images, one folder per class, with a test folder or a held-out share."""

    def load(self, config: DataConfig, progress: Progress | None) -> ImageData:
        root = required_root(config)
        return load_folder(config, root, progress, side=config.side, zoom=1.0)
