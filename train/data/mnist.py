"""MNIST and Fashion-MNIST: IDX files (http://yann.lecun.com/exdb/mnist describes them), gzipped or not."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from structadmm.errors import UserError
from structadmm.files import cache_dir
from train.data.dataset import Augmentation, Dataset, channel_statistics
from train.data.fetch import check_md5, download

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_URL = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
}
# Of the gzipped files, in the order of _FILES.
_MD5 = {
    "mnist": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion_mnist": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
}
_CLASSES = {
    "mnist": tuple(str(digit) for digit in range(10)),
    "fashion_mnist": (
        "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
}  # fmt: skip


def load(name: str, root: Path | None, *, verify: bool, fetch: bool) -> Dataset:
    """60000 training and 10000 test images, uint8 [N, 1, 28, 28].

    Args:
        name: `mnist` or `fashion_mnist`.
        root: folder that holds the four IDX files; a folder of the user's cache by default.
        verify: refuse gzipped files whose MD5 is not the published one (unpacked ones have none).
        fetch: download what is absent.

    Raises:
        UserError: a file is absent, tampered with or not an IDX file of the expected shape.
    """
    folder = root or cache_dir() / "data" / name
    arrays = []
    for file, md5 in zip(_FILES, _MD5[name], strict=True):
        plain, packed = folder / file, folder / f"{file}.gz"
        if plain.exists():
            arrays.append(read_idx(plain))
            continue
        if not packed.exists():
            if not fetch:
                raise UserError(f"{folder} lacks {packed.name}: set data.root to its folder, or download = true")
            download(_URL[name] + packed.name, packed, md5)
        elif verify:
            check_md5(packed, md5)
        arrays.append(read_idx(packed))
    train_images, train_labels, test_images, test_labels = arrays
    for images, file in ((train_images, _FILES[0]), (test_images, _FILES[2])):
        if images.ndim != 3:
            raise UserError(f"{folder / file} holds an array of shape {tuple(images.shape)}, expected [N, H, W]")
    mean, std = channel_statistics(train_images.unsqueeze(1))
    return Dataset(
        name=name,
        train_images=train_images.unsqueeze(1),
        train_labels=train_labels.long(),
        test_images=test_images.unsqueeze(1),
        test_labels=test_labels.long(),
        classes=_CLASSES[name],
        mean=mean,
        std=std,
        augmentation=Augmentation(shift=2, flip=name == "fashion_mnist"),
    )


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in `.gz`.

    Raises:
        UserError: it is not one, or its size is not what its header says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): delete it to download it again") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise UserError(f"{path} is not an IDX file of unsigned bytes (it starts with {data[:4].hex()}): restore it")
    rank = data[3]
    header = 4 + 4 * rank
    if len(data) < header:
        raise UserError(f"{path} ends within its header: restore it")
    shape = struct.unpack(f">{rank}I", data[4:header])
    expected = int(np.prod(shape, dtype=object))
    if len(data) - header != expected:
        raise UserError(f"{path} holds {len(data) - header} bytes, its header promises {expected}: restore it")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy())
