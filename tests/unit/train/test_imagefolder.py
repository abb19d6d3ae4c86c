from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from structadmm.errors import UserError
from train.config import DataConfig
from train.data import Dataset, load_dataset
from train.data.batches import EpochBatches
from train.data.images import FileImages, read_image


def fill(root: Path, per_class: int = 5) -> Path:
    """Two classes of lossless images: reds and blues, wide and high."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(("blue", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                pixels = generator.integers(0, 256, (20, 30, 3) if number % 2 else (30, 20, 3), dtype=np.uint8)
                pixels[:, :, 2 * (1 - label)] = 250
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def config(root: Path | None, **kwargs: Any) -> DataConfig:
    return DataConfig(name="imagefolder", root=root, kwargs={"size": 8, **kwargs})


def test_folders_are_classes_and_files_are_their_images(tmp_path: Path) -> None:
    data = load_dataset(config(fill(tmp_path)))
    assert data.classes == ("blue", "red")
    assert data.image_shape == (3, 8, 8)
    assert data.train_labels.tolist() == [0] * 5 + [1] * 5
    # The constant channel survives scaling.
    assert (data.train_images[:5][:, 2] == 250).all()
    assert (data.test_images[5:][:, 0] == 250).all()
    assert (data.augmentation.shift, data.augmentation.flip) == (1, True)


def test_an_image_of_the_wanted_size_is_read_exactly_and_a_longer_side_is_cut_in_the_middle(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expected = torch.from_numpy(pixels[:, 3:11]).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "image.png", 8), expected)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    assert torch.equal(read_image(tmp_path / "grey.png", 8), expected[:1].expand(3, 8, 8))


def test_images_left_in_files_give_the_same_batches(tmp_path: Path) -> None:
    root = fill(tmp_path)
    kept, lazy = load_dataset(config(root)), load_dataset(config(root, memory_gib=0))
    assert isinstance(kept.train_images, torch.Tensor)
    assert isinstance(lazy.train_images, FileImages)

    def batches(data: Dataset, first: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(EpochBatches(data, 4, seed=0, epoch=1, augment=True).batches(first))

    for first in (0, 2):
        for one, other in zip(batches(kept, first), batches(lazy, first), strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    (rest, held), (lazy_rest, lazy_held) = kept.hold_out(0.3), lazy.hold_out(0.3)
    assert torch.equal(held[:], lazy_held[:])
    assert torch.equal(rest.train_images[:], lazy_rest.train_images[:])
    assert len(held) == 3
    assert len(rest.train_labels) == 7


def test_the_next_batch_is_read_while_one_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset(config(fill(tmp_path), memory_gib=0))
    read: list[int] = []
    original = FileImages.__getitem__

    def counted(self: FileImages, index: Any) -> torch.Tensor:
        read.append(len(index))
        return original(self, index)

    monkeypatch.setattr(FileImages, "__getitem__", counted)
    batches = EpochBatches(data, 4, seed=0, epoch=0, augment=False).batches()
    next(batches)
    until = time.monotonic() + 30
    while len(read) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert read == [4, 4]
    assert [len(labels) for _, labels in batches] == [4, 2]


def test_a_damaged_image_is_named_in_one_line(tmp_path: Path) -> None:
    root = fill(tmp_path)
    path = root / "train" / "red" / "2.png"
    whole = path.read_bytes()
    for damage in (b"not an image", whole[: len(whole) // 2], whole[:60] + b"\0" * 40 + whole[100:], b""):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"red/2\.png is not an image") as refused:
            load_dataset(config(root))
        assert "\n" not in str(refused.value)
        data = load_dataset(config(root, memory_gib=0))
        with pytest.raises(UserError, match=r"red/2\.png is not an image"):
            list(EpochBatches(data, 4, seed=0, epoch=0, augment=False).batches())


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((64, 64), dtype=np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="not an image that can be read"):
        read_image(path, 8)


def test_missing_folders_classes_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs train\.data\.root"):
        load_dataset(config(None))
    with pytest.raises(UserError, match="train does not exist"):
        load_dataset(config(tmp_path))
    root = fill(tmp_path)
    with pytest.raises(UserError, match=r"train.data.kwargs.siez: Extra inputs"):
        load_dataset(config(root, siez=3))
    (root / "train" / "green").mkdir()
    with pytest.raises(UserError, match="green holds no image"):
        load_dataset(config(root))
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(root / "train" / "green" / "a.JPG")
    with pytest.raises(UserError, match="'green' is in only one of"):
        load_dataset(config(root))


def test_images_of_sixteen_bits_keep_their_shades_and_others_are_refused(tmp_path: Path) -> None:
    shades = np.array([[0, 300], [30_000, 65_535]], np.uint16)
    Image.fromarray(shades).save(tmp_path / "16.png")
    found = read_image(tmp_path / "16.png", 2)
    assert found.shape == (3, 2, 2)
    assert found[0].tolist() == [[0, 1], [117, 255]]
    assert torch.equal(found[0], found[1])
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(UserError, match=r"f\.tiff is not an image that can be read \(its pixels are of mode F"):
        read_image(tmp_path / "f.tiff", 2)
