"""The batches of one epoch: order and augmentation are a pure function of the seed and the epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from train.data.dataset import Augmentation, Dataset

_OF_SHARES = 1


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that depends on each of `parts` and mixes them well."""
    state = np.random.SeedSequence(parts).generate_state(2, np.uint64)
    return int(state[0] >> np.uint64(1))


class EpochBatches:
    """Training batches of one epoch for one of several processes.

    The global batch `k` holds the samples `order[k * batch_size : (k + 1) * batch_size]`; every process takes its share
    of it, so that the union over the processes does not depend on their number. A last batch of a single sample is
    dropped, for BatchNorm has no variance for it, and one that leaves a process without any.

    Args:
        dataset: images and labels, on the device where batches are wanted.
        batch_size: global, at least one sample for each process.
        seed: of the run.
        epoch: counted over the whole run.
        augment: apply the data set's augmentation.
        mix: blend each image with the next of its global batch, in shares drawn from Beta(mix, mix); None: do not.
        rank: of this process.
        processes: how many there are.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        epoch: int,
        augment: bool,
        mix: float | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._rank = rank
        self._processes = processes
        count = len(dataset.train_labels)
        generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
        self._order = torch.randperm(count, generator=generator)
        shift = dataset.augmentation.shift if augment else 0
        self._augmentation = Augmentation(shift, augment and dataset.augmentation.flip)
        # Drawn per sample of the epoch, not per batch: how the epoch is cut into batches changes nothing.
        offsets = torch.randint(0, 2 * shift + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5
        # To the device once an epoch: a copy for every batch would make the host wait for it.
        device = dataset.train_labels.device
        self._places, self._offsets, self._flips = (drawn.to(device) for drawn in (self._order, offsets, flips))
        self._shares: Tensor | None = None
        if mix is not None:
            # A generator of its own: with and without blends an epoch has the same order, crops and flips.
            shares = np.random.default_rng(derived_seed(seed, epoch, _OF_SHARES)).beta(mix, mix, count)
            self._shares = torch.from_numpy(shares).float().to(device)
        full, rest = divmod(count, batch_size)
        self.steps = full + (1 if rest >= max(2, processes) else 0)

    def size(self, step: int) -> int:
        """Samples of global batch `step`."""
        return min(self._batch_size, len(self._order) - step * self._batch_size)

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images and targets of this process, from global batch `first` on.

        Images are normalised float32 [N, C, H, W]. Targets are labels, int64 [N], or of blends the share of each class,
        float32 [N, classes].
        """
        device = self._dataset.train_labels.device
        for part, images in self._read_ahead(first):
            images = images.to(device)  # noqa: PLW2901 - the same images, on another device
            if self._augmentation.shift:
                images = shifted(images, _of(self._offsets, part), self._augmentation.shift)  # noqa: PLW2901
            if self._augmentation.flip:
                flips = _of(self._flips, part).view(-1, 1, 1, 1)
                images = torch.where(flips, images.flip(3), images)  # noqa: PLW2901
            found, labels = self._dataset.normalised(images), self._dataset.train_labels[_of(self._places, part)]
            if self._shares is None:
                yield found, labels
            else:
                share = self._shares[part[0]]
                classes = torch.nn.functional.one_hot(labels, len(self._dataset.classes)).float()
                yield blended(found, share.view(-1, 1, 1, 1)), blended(classes, share.view(-1, 1))

    def _read_ahead(self, first: int) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """This process's part of each batch, as places in the epoch, and its images; files are read a batch ahead."""
        parts = [self._part(step) for step in range(first, self.steps)]
        source = self._dataset.train_images
        if isinstance(source, Tensor):
            for part in parts:
                yield part, source[_of(self._places, part)]
            return
        with ThreadPoolExecutor(1) as reader:
            waiting: deque[Future[Tensor]] = deque()
            for place, part in enumerate(parts):
                for ahead in parts[place + len(waiting) : place + 2]:
                    waiting.append(reader.submit(source.__getitem__, _of(self._order, ahead)))
                yield part, waiting.popleft().result()

    def _part(self, step: int) -> tuple[slice, ...]:
        begin, size = step * self._batch_size, self.size(step)
        low, high = (begin + size * rank // self._processes for rank in (self._rank, self._rank + 1))
        if self._shares is None:
            return (slice(low, high),)
        # The last image's partner is the next process's first: how the batch is divided changes no blend.
        partner = begin + (high - begin) % size
        return slice(low, high), slice(partner, partner + 1)


def _of(values: Tensor, part: tuple[slice, ...]) -> Tensor:
    return torch.cat([values[places] for places in part]) if len(part) > 1 else values[part[0]]


def blended(values: Tensor, share: Tensor) -> Tensor:
    """Each row of `values` but the last, blended with the row after it.

    Args:
        values: float32 [N + 1, ...].
        share: of the first of the two, [N] with ones for the other axes.
    """
    return torch.lerp(values[1:], values[:-1], share)


def shifted(images: Tensor, offsets: Tensor, shift: int) -> Tensor:
    """Crop each image out of itself padded by `shift` zeros.

    Args:
        images: [N, C, H, W].
        offsets: int64 [N, 2], row and column of the crop in [0, 2 * shift]; `shift` leaves the image where it is.
        shift: pixels of padding on each side.
    """
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (shift,) * 4)
    rows = offsets[:, 0, None] + torch.arange(height, device=images.device)  # [N, H]
    columns = offsets[:, 1, None] + torch.arange(width, device=images.device)  # [N, W]
    sample = torch.arange(count, device=images.device)
    # Advanced indices around the slice put the channel last: [N, H, W, C].
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
