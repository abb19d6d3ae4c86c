"""The batches of one epoch: order and augmentation are a pure function of the seed and the epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from train.data.dataset import Augmentation, Dataset


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that depends on each of `parts` and mixes them well."""
    state = np.random.SeedSequence(parts).generate_state(2, np.uint64)
    return int(state[0] >> np.uint64(1))


class EpochBatches:
    """Training batches of one epoch for one of several processes.

    The global batch `k` holds the samples `order[k * batch_size : (k + 1) * batch_size]`; every process takes its share
    of it, so that the union over the processes does not depend on their number. A last batch of a single sample is
    dropped: BatchNorm has no variance for it.

    Args:
        dataset: images and labels, on the device where batches are wanted.
        batch_size: global.
        seed: of the run.
        epoch: counted over the whole run.
        augment: apply the data set's augmentation.
        rank: of this process.
        processes: how many there are.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int, epoch: int, augment: bool, rank: int = 0, processes: int = 1
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
        full, rest = divmod(count, batch_size)
        self.steps = full + (1 if rest > 1 else 0)

    def size(self, step: int) -> int:
        """Samples of global batch `step`."""
        return min(self._batch_size, len(self._order) - step * self._batch_size)

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (normalised float32 images, labels) of this process, from global batch `first` on."""
        device = self._dataset.train_labels.device
        for share, images in self._read_ahead(first):
            images = images.to(device)  # noqa: PLW2901 - the same images, on another device
            if self._augmentation.shift:
                images = shifted(images, self._offsets[share], self._augmentation.shift)  # noqa: PLW2901
            if self._augmentation.flip:
                images = torch.where(self._flips[share].view(-1, 1, 1, 1), images.flip(3), images)  # noqa: PLW2901
            yield self._dataset.normalised(images), self._dataset.train_labels[self._places[share]]

    def _read_ahead(self, first: int) -> Iterator[tuple[slice, Tensor]]:
        """This process's share of each batch; files are read while the batch before is trained on."""
        shares = [self._share(step) for step in range(first, self.steps)]
        source = self._dataset.train_images
        if isinstance(source, Tensor):
            for share in shares:
                yield share, source[self._places[share]]
            return
        with ThreadPoolExecutor(1) as reader:
            waiting: deque[Future[Tensor]] = deque()
            for place, share in enumerate(shares):
                for ahead in shares[place + len(waiting) : place + 2]:
                    waiting.append(reader.submit(source.__getitem__, self._order[ahead]))
                yield share, waiting.popleft().result()

    def _share(self, step: int) -> slice:
        begin, size = step * self._batch_size, self.size(step)
        return slice(begin + size * self._rank // self._processes, begin + size * (self._rank + 1) // self._processes)


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
