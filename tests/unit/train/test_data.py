from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import struct
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from structadmm.errors import UserError
from train.config import DataConfig
from train.data import Augmentation, Dataset, cifar10, load_dataset, mnist
from train.data.batches import EpochBatches, shifted
from train.data.mnist import read_idx


def random_dataset(count: int = 21, augmentation: Augmentation | None = None) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 6, 5), generator=generator).to(torch.uint8)
    return Dataset(
        name="random",
        train_images=images,
        train_labels=torch.arange(count) % 3,
        test_images=images,
        test_labels=torch.arange(count) % 3,
        classes=("a", "b", "c"),
        mean=(0.5, 0.4),
        std=(0.2, 0.3),
        augmentation=augmentation or Augmentation(),
    )


def test_digits_are_split_the_same_way_always_and_in_proportion() -> None:
    data = load_dataset(DataConfig())
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    assert int(data.test_labels.bincount().max() - data.test_labels.bincount().min()) <= 2
    # A change of the split would silently make all published accuracies incomparable.
    digest = hashlib.sha256(data.test_images.numpy().tobytes() + data.test_labels.numpy().tobytes()).hexdigest()
    assert digest.startswith("a2fc2790f951761e")
    pixels = data.normalised(data.train_images)
    # float32 sums of 92k numbers near 1.
    assert float(pixels.mean()) == pytest.approx(0, abs=1e-4)
    assert float(pixels.std()) == pytest.approx(1, abs=1e-4)


def test_held_out_images_come_with_their_own_labels() -> None:
    data = load_dataset(DataConfig(name="digits"))
    rest, images = data.hold_out(0.1)
    labels = data.held_out_labels(0.1)
    assert len(labels) == len(images) == len(data.train_labels) - len(rest.train_labels)
    everything = [*zip(rest.train_images[:], rest.train_labels, strict=True), *zip(images[:], labels, strict=True)]
    pairs, original = (
        sorted((tuple(image.flatten().tolist()), int(label)) for image, label in each)
        for each in (everything, zip(data.train_images[:], data.train_labels, strict=True))
    )
    assert pairs == original


def test_an_epoch_is_a_pure_function_of_seed_and_epoch() -> None:
    data = random_dataset(augmentation=Augmentation(shift=2, flip=True))

    def epoch(seed: int, number: int) -> torch.Tensor:
        return torch.cat([images for images, _ in EpochBatches(data, 4, seed, number, augment=True).batches()])

    assert torch.equal(epoch(0, 3), epoch(0, 3))
    assert not torch.equal(epoch(0, 3), epoch(0, 4))
    assert not torch.equal(epoch(0, 3), epoch(1, 3))


def test_going_on_within_an_epoch_gives_the_batches_that_were_left() -> None:
    data = random_dataset(augmentation=Augmentation(shift=1))
    whole = list(EpochBatches(data, 4, 0, 0, augment=True).batches())
    rest = list(EpochBatches(data, 4, 0, 0, augment=True).batches(first=3))
    assert len(rest) == len(whole) - 3
    for (left, left_labels), (right, right_labels) in zip(whole[3:], rest, strict=True):
        assert torch.equal(left, right)
        assert torch.equal(left_labels, right_labels)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(count=st.integers(2, 30), batch=st.integers(2, 9), processes=st.integers(1, 3), mix=st.sampled_from([None, 1.0]))
def test_processes_share_the_samples_of_one_and_none_is_lost(
    count: int, batch: int, processes: int, mix: float | None
) -> None:
    """But those of a last batch that is too small for all of them."""
    assume(batch >= processes)
    data = random_dataset(count, Augmentation(shift=1, flip=True))
    whole = EpochBatches(data, batch, 0, 0, augment=True, mix=mix)
    parts = [
        list(EpochBatches(data, batch, 0, 0, augment=True, mix=mix, rank=r, processes=processes).batches())
        for r in range(processes)
    ]
    seen = 0
    rest = count % batch
    lost = rest if rest < processes else 0
    steps = {len(part) for part in parts}
    assert steps == {whole.steps - (1 if lost >= 2 else 0)}
    for step, (images, labels) in enumerate(whole.batches()):
        if step == len(parts[0]):
            assert len(labels) == lost < processes
            continue
        assert all(len(part[step][1]) > 0 for part in parts)
        assert torch.equal(images, torch.cat([part[step][0] for part in parts]))
        assert torch.equal(labels, torch.cat([part[step][1] for part in parts]))
        assert len(labels) == whole.size(step) >= 2
        seen += len(labels)
    assert seen == count - (1 if rest == 1 else lost)


def test_blends_are_of_neighbours_in_the_batch_and_their_targets_say_how_much_of_each() -> None:
    data = random_dataset(11, Augmentation(shift=1, flip=True))
    plain = list(EpochBatches(data, 4, 0, 2, augment=True).batches())
    mixed = list(EpochBatches(data, 4, 0, 2, augment=True, mix=0.5).batches())
    assert len(plain) == len(mixed) == 3
    shares = []
    for (images, labels), (blends, targets) in zip(plain, mixed, strict=True):
        assert targets.shape == (len(labels), len(data.classes))
        for index, (blend, target) in enumerate(zip(blends, targets, strict=True)):
            other = (index + 1) % len(labels)
            apart = images[index] - images[other]
            share = float(((blend - images[other]) * apart).sum() / (apart**2).sum())
            torch.testing.assert_close(blend, images[other] + share * apart, atol=1e-5, rtol=1e-5)
            expected = torch.zeros(len(data.classes))
            expected[labels[index]] += share
            expected[labels[other]] += 1 - share
            torch.testing.assert_close(target, expected, atol=1e-5, rtol=1e-5)
            shares.append(share)
    assert min(shares) >= -1e-6
    assert max(shares) <= 1 + 1e-6
    assert max(shares) - min(shares) > 0.1


def test_a_shift_moves_each_image_by_its_own_offset() -> None:
    images = random_dataset().train_images[:3]
    offsets = torch.tensor([[2, 2], [0, 2], [4, 1]])
    moved = shifted(images, offsets, shift=2)
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1][:, 2:], images[1][:, :-2])
    assert not moved[1][:, :2].any()
    assert torch.equal(moved[2][:, :-2, 1:], images[2][:, 2:, :-1])
    assert not moved[2][:, -2:].any()
    assert not moved[2][:, :, 0].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": torch.zeros(3, 2, 6, 5)}, "expected uint8"),
        ({"train_labels": torch.tensor([0, 1, 3])}, r"labels span \[0, 3\], expected \[0, 2\]"),
        ({"train_labels": torch.tensor([0, 1])}, r"expected int64 \[3\]"),
        ({"mean": (0.5,)}, "must have 2 finite entries"),
        ({"std": (0.2, float("nan"))}, "must have 2 finite entries, std positive ones"),
        ({"mean": (float("nan"), 0.5)}, "must have 2 finite entries"),
        ({"train_images": np.zeros((3, 2, 6, 5), np.uint8)}, "train images are a ndarray, expected a torch.Tensor"),
        ({"test_labels": np.arange(3)}, "test labels are a ndarray, expected a torch.Tensor"),
        ({"augmentation": Augmentation(shift=-1)}, r"shifts by -1, expected whole pixels in \[0, 4\]"),
        ({"augmentation": Augmentation(shift=5)}, r"shifts by 5, expected whole pixels in \[0, 4\]"),
        ({"augmentation": Augmentation(shift=0.5)}, "shifts by 0.5, expected whole pixels"),  # type: ignore[arg-type]
        ({"mean": 0.5}, "mean is 0.5, expected a number for each channel"),
        ({"std": torch.ones(2, 6, 5)}, "expected a number for each channel"),
        ({"test_images": torch.zeros(3, 2, 5, 5, dtype=torch.uint8)}, "must be of one size"),
    ],
)
def test_a_data_set_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    images = torch.zeros(3, 2, 6, 5, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2])
    fields: dict[str, Any] = {
        "name": "mine",
        "train_images": images,
        "train_labels": labels,
        "test_images": images,
        "test_labels": labels,
        "classes": ("a", "b", "c"),
        "mean": (0.5, 0.5),
        "std": (0.2, 0.2),
    }
    with pytest.raises(UserError, match=message):
        Dataset(**(fields | changes))


@pytest.mark.parametrize(
    "convert", [tuple, list, np.asarray, torch.from_numpy, lambda values: tuple(torch.tensor(values))]
)
def test_statistics_of_any_kind_are_kept_as_plain_numbers(convert: Callable[[Any], Any]) -> None:
    mean, std = np.array([0.5, 0.25], np.float32), np.array([0.125, 1.0], np.float32)
    data = replace(random_dataset(), mean=convert(mean), std=convert(std), classes=[0, 1, 2])
    assert json.dumps([data.mean, data.std, data.classes]) == '[[0.5, 0.25], [0.125, 1.0], ["0", "1", "2"]]'
    assert torch.equal(data.normalised(data.test_images), replace(data, mean=(0.5, 0.25)).normalised(data.test_images))


def test_unknown_names_and_callables_are_refused_with_what_is_near() -> None:
    with pytest.raises(UserError, match=r"unknown data 'cifar'.*cifar10"):
        load_dataset(DataConfig(name="cifar"))
    with pytest.raises(UserError, match="cannot import no_such_module"):
        load_dataset(DataConfig(name="no_such_module:load"))
    with pytest.raises(UserError, match=r"returned a OrderedDict, expected a train.data.Dataset"):
        load_dataset(DataConfig(name="collections:OrderedDict"))
    with pytest.raises(UserError, match="takes no kwargs"):
        load_dataset(DataConfig(name="digits", kwargs={"size": 8}))


def write_cifar(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        images = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        # The published files were pickled by Python 2.
        batch = {b"data": images, b"labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def test_cifar_batches_are_read_in_order_and_by_channel(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py")
    data = cifar10.load(tmp_path, verify=False, fetch=False)
    assert data.train_images.shape == (50, 3, 32, 32)
    first = pickle.loads((tmp_path / "cifar-10-batches-py" / "data_batch_1").read_bytes(), encoding="bytes")
    assert data.train_images[3, 1, 2, 5] == first[b"data"][3, 1024 + 2 * 32 + 5]
    assert data.train_labels[:10].tolist() == list(range(10))
    # The folder itself will do as well.
    assert torch.equal(
        cifar10.load(tmp_path / "cifar-10-batches-py", verify=False, fetch=False).test_images, data.test_images
    )


def test_a_changed_cifar_batch_is_refused_unless_verification_is_off(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py")
    with pytest.raises(UserError, match=r"data_batch_1 has MD5 .*, the published file has c99cafc"):
        cifar10.load(tmp_path, verify=True, fetch=False)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_batch_that_would_run_code_is_refused_and_does_not_run_it(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(Payload(tmp_path / "harm")))
    with pytest.raises(UserError, match=r"data_batch_2 is not a CIFAR-10 batch .*asks for"):
        cifar10.load(tmp_path, verify=False, fetch=False)
    assert not (tmp_path / "harm").exists()


def test_absent_files_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"lacks data_batch_1: set data.root"):
        cifar10.load(tmp_path, verify=True, fetch=False)

    def offline(*_args: object, **_kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded from https.*no network.*by hand"):
        cifar10.load(tmp_path, verify=True, fetch=True)
    with pytest.raises(UserError, match="cannot be downloaded"):
        mnist.load("mnist", tmp_path, verify=True, fetch=True)
    assert not list(tmp_path.iterdir())


def test_a_download_of_something_else_leaves_nothing_behind(tmp_path: Path) -> None:
    from train.data.fetch import download

    (tmp_path / "source").write_bytes(b"an error page")
    with pytest.raises(UserError, match="sent a file with MD5"):
        download((tmp_path / "source").as_uri(), tmp_path / "data" / "file.gz", "0" * 32)
    assert not list((tmp_path / "data").iterdir())


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist_is_read_from_plain_and_from_gzipped_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 28, 28), dtype=np.uint8), np.arange(12, dtype=np.uint8) % 10
    for split in ("train", "t10k"):
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    data = mnist.load("fashion_mnist", tmp_path, verify=False, fetch=False)
    np.testing.assert_array_equal(data.train_images[:, 0].numpy(), images)
    np.testing.assert_array_equal(data.test_labels.numpy(), labels)
    with pytest.raises(UserError, match="MD5"):
        mnist.load("fashion_mnist", tmp_path, verify=True, fetch=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\x03" + b"\0" * 12, "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "holds 3 bytes, its header promises 5"),
        (b"", "not an IDX file"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(tmp_path / "file")
    (tmp_path / "file.gz").write_bytes(b"not gzip at all")
    with pytest.raises(UserError, match="cannot be unpacked"):
        read_idx(tmp_path / "file.gz")
