"""A user's folders of images: every layout reads, every fault is one sentence."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wiring.errors import DataError
from workers.data import ImageData, folders, load_data, stream
from workers.data.arrays import ArrayData
from workers.data.listing import fit, random_fit
from workers.data.stream import StreamData
from workers.spec import DataConfig

CLASSES = ("ant", "bee")


def write_images(
    root: Path,
    *,
    classes: tuple[str, ...] = CLASSES,
    count: int = 6,
    size: tuple[int, int] = (8, 8),
) -> None:
    draw = np.random.default_rng(len(root.name))
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


def load(root: Path, **settings: object) -> ImageData:
    return load_data(DataConfig.model_validate({"name": "folder", "root": root, **settings}))


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MEMORY_BYTES", 0)


@pytest.mark.parametrize("held", ["test", "val"])
def test_a_test_or_val_folder_gives_the_test_images(tmp_path: Path, held: str) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / held, count=3)
    data = load(tmp_path)
    assert data.classes == CLASSES
    assert data.counts == {"train": 10, "val": 2, "test": 6}


def test_without_one_a_share_is_held_out(tmp_path: Path) -> None:
    write_images(tmp_path / "flat", count=10)
    write_images(tmp_path / "nested" / "train", count=10)
    for root in (tmp_path / "flat", tmp_path / "nested"):
        assert load(root, test=0.3).counts == {"train": 12, "val": 2, "test": 6}


def test_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test")
    data = load(tmp_path)
    assert isinstance(data, ArrayData)
    pixels, labels = data.parts["test"]
    assert labels.tolist() == [0] * 6 + [1] * 6
    assert np.array_equal(pixels[7], np.asarray(Image.open(tmp_path / "test/bee/1.png")))


def test_other_files_and_hidden_folders_are_no_images(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    (tmp_path / "train/ant/notes.txt").write_text("not an image")
    (tmp_path / "train/.cache").mkdir()
    assert sum(load(tmp_path).counts.values()) == 12


def test_images_of_mixed_sizes_are_named_with_the_option_that_helps(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", size=(9, 7))
    with pytest.raises(DataError, match=r"is 8x8, .*test/ant/0.png is 9x7; --set data.side=N"):
        load(tmp_path)
    assert load(tmp_path, side=6).image.side == 6


def test_images_that_are_not_square_need_a_side(tmp_path: Path) -> None:
    write_images(tmp_path, size=(9, 7))
    with pytest.raises(DataError, match=r"is 9x7, not square; --set data\.side=N"):
        load(tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    broken = tmp_path / "bee/3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"bee/3\.png: cannot be read as an image"):
        load(tmp_path)
    broken.write_text("no image at all")
    with pytest.raises(DataError, match=r"bee/3\.png: cannot be read as an image"):
        load(tmp_path)


def test_bad_layouts_are_each_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs --data-root"):
        load_data(DataConfig(name="folder"))
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no class folders"):
        load(tmp_path)
    write_images(tmp_path / "one", classes=("ant",))
    with pytest.raises(DataError, match="has only the class 'ant'"):
        load(tmp_path / "one")
    (tmp_path / "one/bee").mkdir()
    with pytest.raises(DataError, match="class 'bee' has no images"):
        load(tmp_path / "one")
    write_images(tmp_path / "odd/train")
    write_images(tmp_path / "odd/test", classes=("ant", "bee", "cat"))
    with pytest.raises(DataError, match="class 'cat' is in test/ only"):
        load(tmp_path / "odd")
    write_images(tmp_path / "few", count=1)
    with pytest.raises(DataError, match="class 'ant' of data set 'folder' has 1 training images"):
        load(tmp_path / "few")


def test_progress_counts_the_images_decoded(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test")
    calls: list[tuple[int, int]] = []
    config = DataConfig(name="folder", root=tmp_path)
    load_data(config, lambda done, count: calls.append((done, count)))
    assert calls == [(done, 24) for done in range(1, 25)]


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("loaders", [0, 2])
def test_a_stream_gives_the_batches_that_memory_would(
    tmp_path: Path, loaders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, count=12)
    streamed = load(tmp_path, loaders=loaders)
    monkeypatch.undo()
    held = load(tmp_path)
    assert isinstance(streamed, StreamData)
    assert isinstance(held, ArrayData)
    assert streamed.counts == held.counts
    for first, second in (
        tuple(d.train_batches(2, batch_size=4, seed=1, start_step=1) for d in (streamed, held)),
        (streamed.test_batches(3), held.test_batches(3)),
        (streamed.val_batches(3), held.val_batches(3)),
    ):
        for (x, y), (a, b) in zip(first, second, strict=True):
            assert torch.equal(x, a)
            assert torch.equal(y, b)


@pytest.mark.usefixtures("streamed")
def test_a_stream_augments_by_seed_epoch_and_step_and_leaves_the_generator_alone(
    tmp_path: Path,
) -> None:
    write_images(tmp_path, count=12, size=(12, 10))
    data = load(tmp_path, side=8, augment=True, loaders=0)
    before = torch.get_rng_state()

    def epoch(number: int, start: int = 0) -> list[torch.Tensor]:
        batches = data.train_batches(number, batch_size=4, seed=0, start_step=start)
        return [x for x, _ in batches]

    whole, again, rest, other = epoch(1), epoch(1), epoch(1, start=2), epoch(2)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))
    assert not torch.equal(whole[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("loaders", [0, 1])
def test_an_image_that_breaks_under_a_stream_is_one_sentence(tmp_path: Path, loaders: int) -> None:
    write_images(tmp_path, count=12)
    data = load(tmp_path, loaders=loaders)
    for path in tmp_path.glob("*/*.png"):
        path.write_text("gone bad")
    with pytest.raises(DataError, match=r"^\S+\.png: cannot be read as an image: \S.*$") as caught:
        list(data.train_batches(1, batch_size=4, seed=0))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("streamed")
def test_a_stream_checks_sizes_before_it_starts_and_digests_names_and_sizes(tmp_path: Path) -> None:
    write_images(tmp_path / "a", count=5)
    digest = load(tmp_path / "a").digest
    assert load(tmp_path / "a").digest == digest
    assert load(tmp_path / "a", side=7).digest != digest
    Image.new("RGB", (5, 5)).save(tmp_path / "a/bee/4.png")
    assert load(tmp_path / "a", side=8).digest != digest
    with pytest.raises(DataError, match=r"images differ in size: .*8x8, .*bee/4\.png is 5x5"):
        load(tmp_path / "a")


def test_imagenet_reads_train_and_val_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "train", classes=("n01", "n02"), size=(40, 30))
    with pytest.raises(DataError, match="val: is missing; --data-root must hold ImageNet's"):
        load_data(DataConfig(name="imagenet", root=tmp_path))
    write_images(tmp_path / "val", classes=("n01", "n02"), size=(30, 40))
    monkeypatch.setattr(folders, "MEMORY_BYTES", 0)
    monkeypatch.setattr(stream, "MOMENT_IMAGES", 4)
    data = load_data(DataConfig(name="imagenet", root=tmp_path, loaders=0))
    assert isinstance(data, StreamData)
    x, y = next(data.test_batches(12))
    assert x.shape == (12, 3, 224, 224)
    assert y.tolist() == [0] * 6 + [1] * 6


def test_fit_crops_the_centre_after_resizing_the_shorter_side() -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 255, 0), (10, 0, 30, 20))
    assert (fit(image, 20) == (0, 255, 0)).all()
    assert fit(image, 7).shape == (7, 7, 3)
    assert fit(image, 8, zoom=1.25).shape == (8, 8, 3)


@pytest.mark.parametrize("size", [(8, 8), (100, 3), (3, 100)])
def test_a_random_part_has_the_side_asked_for_whatever_the_shape(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (9, 8, 7))
    for seed in random.Random(0).sample(range(1000), 20):
        pixels = random_fit(image, 5, np.random.default_rng(seed))
        assert pixels.shape == (5, 5, 3)
        assert (pixels == (9, 8, 7)).all()
