"""Images in memory, or in files that are read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from structadmm.errors import UserError


class FileImages:
    """Image files that look like a uint8 tensor [N, 3, size, size]; indexing reads them.

    Args:
        paths: of the files.
        size: height and width; the shorter side is scaled to it, the longer one cut at both ends.
    """

    dtype = torch.uint8
    ndim = 4
    device = torch.device("cpu")

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self._paths = tuple(paths)
        self._size = size

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def shape(self) -> torch.Size:
        """[N, 3, size, size]."""
        return torch.Size((len(self), 3, self._size, self._size))

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Read the images that a slice or a tensor of indices chooses, several at a time.

        Raises:
            UserError: a file is not an image; names it.
        """
        chosen = self.select(index)._paths
        found = torch.empty((len(chosen), 3, self._size, self._size), dtype=torch.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
            for place, image in enumerate(pool.map(lambda path: read_image(path, self._size), chosen)):
                found[place] = image
        return found

    def select(self, index: Tensor | slice) -> FileImages:
        """The same files, fewer or in another order; nothing is read."""
        if isinstance(index, slice):
            return FileImages(self._paths[index], self._size)
        return FileImages([self._paths[place] for place in index.tolist()], self._size)

    def to(self, device: torch.device) -> FileImages:
        """Files stay where they are; what is read of them is on the CPU."""
        del device
        return self


Images = Tensor | FileImages


def select(images: Images, index: Tensor) -> Images:
    """Some of the images, without reading files."""
    return images.select(index) if isinstance(images, FileImages) else images[index]


def read_image(path: Path, size: int) -> Tensor:
    """An image file as uint8 [3, size, size]: the largest centred square, scaled.

    Raises:
        UserError: it is not an image that can be read.
    """
    try:
        with Image.open(path) as image:
            # A JPEG decoder can skip most of the work when a much smaller image is wanted.
            image.draft("RGB", (2 * size, 2 * size))
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            square = (
                _of_eight_bits(image)
                .convert("RGB")
                .resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
            )
    except Exception as error:  # damaged files fail in as many ways as there are formats
        problem = str(error).replace("\n", " ")[:200]
        raise UserError(f"{path} is not an image that can be read ({problem}): restore or remove it") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """Pillow cuts off what does not fit into eight bits: nearly all of an image of sixteen."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, of 32 bits and an unknown range, expected 8 or 16")
    return image
