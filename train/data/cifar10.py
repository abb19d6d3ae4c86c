"""CIFAR-10 in the layout its authors publish: pickled batches, read without trusting pickle."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from structadmm.errors import UserError
from structadmm.files import cache_dir, write_bytes
from train.data.dataset import Augmentation, Dataset
from train.data.fetch import check_md5, download

_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
_FOLDER = "cifar-10-batches-py"
_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# All that a pickled dict of a uint8 array and a list of integers refers to, by NumPy 1's and 2's names.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        # NumPy 1's module names still resolve in NumPy 2, with a deprecation warning.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load(root: Path | None, *, verify: bool, fetch: bool) -> Dataset:
    """50000 training and 10000 test images, uint8 [N, 3, 32, 32].

    Args:
        root: folder that holds `cifar-10-batches-py`, or that folder itself; the user's cache folder by default.
        verify: refuse batches whose MD5 is not the published one.
        fetch: download them if they are absent.

    Raises:
        UserError: a file is absent, tampered with or not a CIFAR batch.
    """
    root = root or cache_dir() / "data"
    folder = root if (root / "test_batch").exists() else root / _FOLDER
    absent = [name for name in _MD5 if not (folder / name).exists()]
    if absent:
        if not fetch:
            raise UserError(f"{folder} lacks {absent[0]}: set data.root to the folder of {_FOLDER}, or download = true")
        _download(root)
    batches = {name: _read_batch(folder / name, md5 if verify else None) for name, md5 in _MD5.items()}
    train = [batches[name] for name in _MD5 if name != "test_batch"]
    test_images, test_labels = batches["test_batch"]
    return Dataset(
        name="cifar10",
        train_images=torch.from_numpy(np.concatenate([images for images, _ in train])),
        train_labels=torch.from_numpy(np.concatenate([labels for _, labels in train])),
        test_images=torch.from_numpy(test_images),
        test_labels=torch.from_numpy(test_labels),
        classes=_CLASSES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augmentation=Augmentation(shift=4, flip=True),
    )


def _download(root: Path) -> None:
    archive = root / "cifar-10-python.tar.gz"
    if not archive.exists():
        download(_URL, archive, _ARCHIVE_MD5)
    check_md5(archive, _ARCHIVE_MD5)
    with tarfile.open(archive) as packed:
        for name in _MD5:
            stream = packed.extractfile(f"{_FOLDER}/{name}")
            if stream is None:
                raise UserError(f"{archive} has no {_FOLDER}/{name}: delete it to download it again")
            write_bytes(root / _FOLDER / name, stream.read())


def _read_batch(path: Path, md5: str | None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if md5 is not None:
        check_md5(path, md5)
    try:
        batch = _BatchUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images = np.asarray(batch[b"data"])
        labels = np.asarray(batch[b"labels"], dtype=np.int64)
    except Exception as error:  # unpickling garbage raises nearly anything
        raise UserError(f"{path} is not a CIFAR-10 batch ({type(error).__name__}: {error}): restore it") from error
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{path} holds {images.dtype} {images.shape} with labels {labels.shape}, expected uint8 [N, 3072] and [N]"
        )
    return images.reshape(-1, 3, 32, 32).copy(), labels
