"""Image files in folders named after their classes: `ROOT/train/CLASS/*` and `ROOT/val/CLASS/*` (or `test`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from structadmm.errors import UserError
from train.data.dataset import Augmentation, Dataset
from train.data.images import FileImages, Images

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff"))
# ImageNet's, so that published weights fit.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: Annotated[int, Field(ge=1)] = 224
    memory_gib: Annotated[float, Field(ge=0.0)] = 4.0


def load(root: Path | None, kwargs: dict[str, Any]) -> Dataset:
    """Images of 3 channels, with shifts of up to an eighth of their size and mirror images for training.

    Args:
        root: holds `train`, and `val` or `test`.
        kwargs: `size` (224), height and width; `memory_gib` (4.0), how much the decoded images may take: a larger split
            stays in its files, and each batch is decoded when it is needed.

    Raises:
        UserError: a folder or its images are missing, the splits have different classes, or a file is no image.
    """
    try:
        options = _Options.model_validate(kwargs)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"train.data.kwargs.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if root is None or not root.is_dir():
        raise UserError(f"data 'imagefolder' needs train.data.root, a folder with train/ and val/, got {root}")
    test_root = next((root / name for name in ("val", "test") if (root / name).is_dir()), root / "val")
    train_files, test_files = _by_class(root / "train"), _by_class(test_root)
    if train_files.keys() != test_files.keys():
        strange = sorted(train_files.keys() ^ test_files.keys())[0]
        raise UserError(f"class {strange!r} is in only one of {root / 'train'} and {test_root}: give both the same")
    classes = tuple(train_files)
    train_images, train_labels = _split(train_files, options)
    test_images, test_labels = _split(test_files, options)
    return Dataset(
        name=f"imagefolder {root.name}",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=classes,
        mean=_MEAN,
        std=_STD,
        augmentation=Augmentation(shift=options.size // 8, flip=True),
    )


def _by_class(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: put one folder of images for each class there")
    found: dict[str, list[Path]] = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found[inner.name] = sorted(path for path in inner.iterdir() if path.suffix.lower() in _SUFFIXES)
        if not found[inner.name]:
            raise UserError(f"{inner} holds no image ({', '.join(sorted(_SUFFIXES))}): fill it or remove it")
    if not found:
        raise UserError(f"{folder} is empty: put one folder of images for each class there")
    return found


def _split(files: dict[str, list[Path]], options: _Options) -> tuple[Images, Tensor]:
    labels = torch.tensor([label for label, paths in enumerate(files.values()) for _ in paths])
    images = FileImages([path for paths in files.values() for path in paths], options.size)
    fits = images.shape.numel() <= options.memory_gib * 2**30
    return images[:] if fits else images, labels
