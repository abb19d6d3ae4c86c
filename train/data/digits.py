"""scikit-learn's handwritten digits: 1797 images of 8x8 pixels that come with the package: nothing to download."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from train.data.dataset import Augmentation, Dataset, channel_statistics

_TEST_IMAGES = 360
# The split is part of the data set, not of the run: accuracies of different seeds are about the same test images.
_SPLIT_SEED = 0


def load() -> Dataset:
    """1437 training and 360 test images, uint8 [N, 1, 8, 8], stratified by class."""
    bunch = load_digits()
    pixels = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[:, None]
    labels = np.asarray(bunch.target, dtype=np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=_TEST_IMAGES, stratify=labels, random_state=_SPLIT_SEED, shuffle=True
    )
    train_images = torch.from_numpy(pixels[train])
    mean, std = channel_statistics(train_images)
    return Dataset(
        name="digits",
        train_images=train_images,
        train_labels=torch.from_numpy(labels[train]),
        test_images=torch.from_numpy(pixels[test]),
        test_labels=torch.from_numpy(labels[test]),
        classes=tuple(str(digit) for digit in range(10)),
        mean=mean,
        std=std,
        # Mirrored digits are other signs; a pixel of 8x8 is already an eighth of the image.
        augmentation=Augmentation(shift=1),
    )
