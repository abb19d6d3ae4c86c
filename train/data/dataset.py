"""A whole image classification data set."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from structadmm.errors import UserError
from train.data.images import Images, select

_HOLD_OUT_SEED = 0


@dataclass(frozen=True)
class Augmentation:
    """What happens at random to a training image.

    Attributes:
        shift: largest translation in pixels, in each direction; uncovered pixels are 0 before normalisation.
        flip: mirror left and right with probability 1/2.
    """

    shift: int = 0
    flip: bool = False


@dataclass(frozen=True)
class Dataset:
    """Training and test images with their labels.

    `mean` and `std` may be given as arrays or tensors, too; they are kept as tuples of floats.

    Attributes:
        name: what it is called in reports.
        train_images: uint8 [N, C, H, W], in memory or in files.
        train_labels: int64 [N], in [0, len(classes)).
        test_images: uint8 [M, C, H, W].
        test_labels: int64 [M].
        classes: their names.
        mean: per channel, of the pixels divided by 255.
        std: per channel, likewise.
        augmentation: of the training images.
    """

    name: str
    train_images: Images
    train_labels: Tensor
    test_images: Images
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        # Results are written as JSON, after the training: scalars of NumPy and PyTorch must not get that far.
        for name, values in (("mean", self.mean), ("std", self.std)):
            object.__setattr__(self, name, _floats(f"data {self.name!r}: {name}", values))
        object.__setattr__(self, "name", str(self.name))
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        for split, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            for what, found, kinds in (("images", images, Images), ("labels", labels, Tensor)):
                if not isinstance(found, kinds):
                    raise UserError(
                        f"data {self.name!r}: {split} {what} are a {type(found).__name__}, expected a torch.Tensor: "
                        "torch.from_numpy(...) makes one of an array"
                    )
            if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
                raise UserError(
                    f"data {self.name!r}: {split} images are {images.dtype} {tuple(images.shape)}, "
                    "expected uint8 [N, C, H, W] with N > 0"
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise UserError(
                    f"data {self.name!r}: {split} labels are {labels.dtype} {tuple(labels.shape)}, "
                    f"expected int64 [{len(images)}]"
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                raise UserError(
                    f"data {self.name!r}: {split} labels span [{low}, {high}], expected [0, {len(self.classes) - 1}]"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise UserError(
                f"data {self.name!r}: train images are {tuple(self.train_images.shape[1:])}, "
                f"test images {tuple(self.test_images.shape[1:])}: they must be of one size"
            )
        channels = self.train_images.shape[1]
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != channels or len(self.std) != channels or not finite or min(self.std) <= 0:
            raise UserError(
                f"data {self.name!r}: mean {self.mean} and std {self.std} must have {channels} finite entries, std "
                "positive ones"
            )
        size, shift = min(self.train_images.shape[2:]), self.augmentation.shift
        if not isinstance(shift, Integral) or not 0 <= shift < size:
            raise UserError(
                f"data {self.name!r}: augmentation shifts by {shift}, expected whole pixels in [0, {size - 1}]: "
                "an eighth of the image is usual"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def hold_out(self, fraction: float) -> tuple[Dataset, Images]:
        """Split training images off: the data set without them, and their images, uint8 [K, C, H, W].

        Which ones is a property of the data set, not of a run. With fraction 0 the data set stays as it is and all
        training images come back, in random order.
        """
        order, taken = self._hold_out_order(fraction)
        if fraction == 0:
            return self, select(self.train_images, order)
        stay = order[taken:].sort().values
        rest = replace(self, train_images=select(self.train_images, stay), train_labels=self.train_labels[stay])
        return rest, select(self.train_images, order[:taken])

    def held_out_labels(self, fraction: float) -> Tensor:
        """The classes of the images that `hold_out` splits off this data set, int64 [K]."""
        order, taken = self._hold_out_order(fraction)
        return self.train_labels[order[:taken]]

    def _hold_out_order(self, fraction: float) -> tuple[Tensor, int]:
        """A random order of the training images that is always the same, and how many of them are split off."""
        count = len(self.train_labels)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(_HOLD_OUT_SEED))
        return order, min(count - 1, max(1, round(count * fraction))) if fraction else count

    def normalised(self, images: Tensor) -> Tensor:
        """Map uint8 [N, C, H, W] to float32 with the data set's mean and standard deviation removed."""
        mean, std = (_of_channels(values, images.device) for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


def _floats(what: str, values: Iterable[Any]) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError, RuntimeError):
        told = " ".join(f"{values!r:.100}".split())
        raise UserError(f"{what} is {told}, expected a number for each channel: give a tuple of them") from None


@lru_cache
def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One value per channel, to be broadcast. Kept: a copy to a GPU for every batch would wait for its queue."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images [N, C, H, W], in units of 255."""
    pixels = images.double() / 255
    return tuple(pixels.mean(dim=(0, 2, 3)).tolist()), tuple(pixels.std(dim=(0, 2, 3)).tolist())
