"""ImageNet as torchvision lays it out: root/train/<wnid>/ and root/val/<wnid>/, the test images."""

from __future__ import annotations

from wiring.errors import DataError
from workers.data.base import DATA, DataSet, ImageData, Progress, required_root
from workers.data.folders import load_folder
from workers.spec import DataConfig

SIDE = 224
ZOOM = 256 / 224


@DATA.register("imagenet")
class ImageNet(DataSet):
    """ILSVRC 2012: 1.28 million training images of 1,000 classes, streamed, at 224x224."""

    paper = "Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, IJCV 2015"

    def load(self, config: DataConfig, progress: Progress | None) -> ImageData:
        root = required_root(config)
        for part in ("train", "val"):
            if not (root / part).is_dir():
                raise DataError(
                    f"{root / part}: is missing; --data-root must hold ImageNet's train/ and val/ "
                    "with one folder per class, and --download cannot fetch it"
                )
        return load_folder(config, root, progress, side=config.side or SIDE, zoom=ZOOM)
