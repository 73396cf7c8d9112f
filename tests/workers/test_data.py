"""Batches are a function of seed, epoch and step; splits of the config alone."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wiring.errors import DataError, UnknownNameError
from workers.data import DATA, load_data
from workers.data.archives import read_archive
from workers.data.arrays import ArrayData, crop_and_flip, moments, resize
from workers.data.base import augmenter
from workers.spec import DataConfig

Batch = tuple[Tensor, Tensor]


def digits(**settings: Any) -> ArrayData:
    data = load_data(DataConfig(**{"side": 8, **settings}))
    assert isinstance(data, ArrayData)
    return data


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_digits_are_32_pixels_wide_unless_asked_otherwise() -> None:
    data = load_data(DataConfig())
    assert (data.image.channels, data.image.side, len(data.classes)) == (1, 32, 10)
    x, y = next(data.train_batches(1, batch_size=16, seed=0))
    assert (x.shape, x.dtype, y.dtype) == ((16, 1, 32, 32), torch.float32, torch.int64)
    assert digits(side=20).image.side == 20


def test_pixels_reach_the_network_normalised_over_the_training_images() -> None:
    data = digits()
    x = torch.cat([x for x, _ in data.train_batches(1, batch_size=64, seed=0)])
    assert float(x.mean()) == pytest.approx(0, abs=1e-3)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


def test_moments_are_those_of_each_channel_and_a_constant_channel_divides_by_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    pixels[..., 1] = 7
    mean, std = moments(pixels)
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std[[0, 2]], pixels.std(axis=(0, 1, 2))[[0, 2]], rtol=1e-6)
    assert std[1] == 1


@pytest.mark.parametrize("augment", [False, True])
def test_an_epoch_taken_up_in_its_middle_goes_on_with_the_same_batches(augment: bool) -> None:
    data = digits(augment=augment)
    whole = list(data.train_batches(3, batch_size=100, seed=5))
    rest = list(data.train_batches(3, batch_size=100, seed=5, start_step=4))
    assert len(whole) == data.steps(100)
    assert equal(whole[4:], rest)


def test_order_and_augmentation_differ_between_epochs_and_seeds_only() -> None:
    data = digits(augment=True)

    def first(epoch: int, seed: int) -> Tensor:
        return next(data.train_batches(epoch, batch_size=50, seed=seed))[0]

    torch.rand(10)
    np.random.rand(10)
    assert torch.equal(first(1, 0), first(1, 0))
    assert not torch.equal(first(1, 0), first(2, 0))
    assert not torch.equal(first(1, 0), first(1, 1))


def test_every_training_image_comes_once_an_epoch() -> None:
    data = digits()
    labels = torch.cat([y for _, y in data.train_batches(1, batch_size=100, seed=0)])
    assert np.array_equal(np.bincount(labels), np.bincount(data.parts["train"][1]))


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(10, [10, 10]), (19, [19, 2]), (20, [20]), (21, [21]), (1, [1] * 21)]
)
def test_a_short_last_batch_is_kept_unless_it_is_a_single_image(
    batch_size: int, sizes: list[int]
) -> None:
    data = digits(limit=31)
    assert data.counts["train"] == 21
    found = [len(y) for _, y in data.train_batches(1, batch_size=batch_size, seed=0)]
    assert found == sizes
    assert data.steps(batch_size) == len(sizes)


def test_splits_share_no_image_cover_all_and_keep_the_classes_proportions() -> None:
    data = digits(validation=0.25, test=0.2)
    seen = [pixels.tobytes() for part in data.parts.values() for pixels in part[0]]
    assert len(seen) == 1797
    assert len(set(seen)) == 1797
    counts = {part: np.bincount(labels) for part, (_, labels) in data.parts.items()}
    total = sum(counts.values())
    np.testing.assert_allclose(counts["test"], 0.2 * total, atol=1)
    np.testing.assert_allclose(counts["val"], 0.25 * (total - counts["test"]), atol=1)


def test_validation_and_test_images_come_in_a_fixed_order_and_are_never_augmented() -> None:
    plain, augmented = digits(), digits(augment=True)
    for part in ("val_batches", "test_batches"):
        assert equal(list(getattr(plain, part)(50)), list(getattr(augmented, part)(50)))


def test_limit_keeps_that_many_training_images_in_proportion_and_leaves_the_test_alone() -> None:
    whole, limited = digits(), digits(limit=100, validation=0.2)
    assert limited.counts == {"train": 80, "val": 20, "test": 359}
    both = np.bincount(np.concatenate([limited.parts["train"][1], limited.parts["val"][1]]))
    assert set(both) == {10}
    assert np.array_equal(limited.parts["test"][0], whole.parts["test"][0])
    assert digits(limit=10**6).digest == whole.digest


def test_the_digest_tells_other_pixels_and_other_splits_apart() -> None:
    digests = [
        digits(**settings).digest
        for settings in ({}, {"augment": True}, {"side": 9}, {"limit": 500}, {"validation": 0.3})
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_too_small_a_limit_and_too_few_images_are_named() -> None:
    with pytest.raises(
        DataError, match="at least 2 training images for each of 10 classes, got 19"
    ):
        digits(limit=19)
    pixels, labels = np.zeros((5, 4, 4, 1), np.uint8), np.array([0, 0, 0, 0, 1])
    config = DataConfig(name="mine")
    whole: dict[str, Any] = {"train": (pixels, labels), "test": (pixels, labels), "flips": False}
    with pytest.raises(DataError, match="class 'b' of data set 'mine' has 1 training images"):
        ArrayData(config, classes=["a", "b"], **whole)
    with pytest.raises(DataError, match="only the class 'a'; a classifier needs at least 2"):
        ArrayData(config, classes=["a"], **{**whole, "train": (pixels[:4], labels[:4])})


def test_crops_are_windows_of_the_padded_image_and_half_are_mirrored() -> None:
    random = np.random.default_rng(0)
    batch = random.integers(1, 256, (200, 6, 6, 2), dtype=np.uint8)
    cropped = crop_and_flip(batch, augmenter((0, 1, 2)), flips=True)
    padded = np.pad(batch, ((0, 0), (4, 4), (4, 4), (0, 0)))
    mirrored, offsets = 0, set()
    for image, canvas in zip(cropped, padded, strict=True):
        places = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            if np.array_equal(image, canvas[top : top + 6, left : left + 6][:, :: 1 - 2 * flip])
        ]
        assert places
        mirrored += places[0][2]
        offsets.add(places[0][:2])
    assert 70 < mirrored < 130
    assert {top for top, _ in offsets} == set(range(9)) == {left for _, left in offsets}


def test_digits_are_never_mirrored() -> None:
    data = digits(augment=True)
    assert data.flips is False
    batch = np.random.default_rng(0).integers(1, 256, (50, 6, 6, 1), dtype=np.uint8)
    plain = crop_and_flip(batch, augmenter((0, 1, 2)), flips=False)
    padded = np.pad(batch, ((0, 0), (4, 4), (4, 4), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (6, 6), axis=(1, 2))
    for image, options in zip(plain, windows, strict=True):
        assert (options[:, :, 0] == image[..., 0]).all(axis=(2, 3)).any()


def test_resize_keeps_flat_images_flat_and_the_mean_of_others() -> None:
    flat = np.full((2, 8, 8, 1), 93, np.uint8)
    assert (resize(flat, 32) == 93).all()
    assert (resize(flat, 5) == 93).all()
    noisy = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert resize(noisy, 8).mean() == pytest.approx(noisy.mean(), abs=2)


def test_data_survive_pickling_with_pixels_out_of_band() -> None:
    data = digits()
    buffers: list[pickle.PickleBuffer] = []
    packed = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    assert len(packed) < 20_000
    again = pickle.loads(packed, buffers=buffers)
    assert equal(list(data.val_batches(50)), list(again.val_batches(50)))


@pytest.mark.parametrize("name", [name for name in DATA.names() if name != "digits"])
def test_a_data_set_that_is_not_there_is_named_with_the_flag_that_helps(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"--data-root|has no class folders") as caught:
        load_data(DataConfig(name=name, root=tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_data_set_is_met_with_a_near_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean digits"):
        load_data(DataConfig(name="digit"))


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path) -> np.ndarray[Any, Any]:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28))
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(40) % 10)
    return pixels


def test_mnist_is_padded_to_32_pixels_or_resized(tmp_path: Path) -> None:
    pixels = write_mnist(tmp_path)
    data = load_data(DataConfig(name="mnist", root=tmp_path))
    assert isinstance(data, ArrayData)
    assert data.counts == {"train": 30, "val": 10, "test": 40}
    test = data.parts["test"][0]
    assert np.array_equal(test[:, 2:30, 2:30, 0], pixels)
    assert test.sum() == pixels.sum()
    assert load_data(DataConfig(name="mnist", root=tmp_path, side=14)).image.side == 14


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    images = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"MNIST: cannot be read: .*--download fetches it again"):
        load_data(DataConfig(name="mnist", root=tmp_path))
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"cifar-10-batches-py: cannot be read: .*corrupted"):
        load_data(DataConfig(name="cifar10", root=tmp_path))


def test_archives_are_downloaded_only_when_asked(tmp_path: Path) -> None:
    asked = []

    class Fake:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            asked.append(download)
            self.data, self.targets = np.zeros((4, 5, 5), np.uint8), [0, 1, 0, 1]
            self.classes = ["no", "yes"]

    with pytest.raises(DataError, match="--download"):
        read_archive(DataConfig(name="mnist", root=tmp_path), Fake, "MNIST")
    assert asked == []
    found = read_archive(DataConfig(name="mnist", root=tmp_path, download=True), Fake, "MNIST")
    assert asked == [True, True]
    assert found.train[0].shape == (4, 5, 5, 1)
    assert found.classes == ("no", "yes")
