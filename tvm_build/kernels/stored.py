"""How a kernel's parameters lie in memory: the one file that tells buffers, constant memory and images apart.

Everything a kernel reads or writes is `lines` of `width` vectors. Of a C4 tensor, line `(n * blocks + block) * H + y`
holds row y of a channel block, one vector of four per pixel; of a convolution's weight, each tile of output channels is
a line.

| memory | vector x of line l | outside |
|---|---|---|
| "buffer" | element `l * width + x` of a `__global` pointer | must not be read |
| "constant" | the same of a `__constant` pointer | must not be read |
| "view" | texel `l * width + x` of an `image1d_buffer_t`: a buffer read through the texture cache | must not be read |
| "image" | texel (x, l) of an `image2d_t`, four numbers of 32 or 16 bits | reads as zero |

So a kernel that gives a line and a position in it runs on all of them, and where a predicate would have kept it from
reading padding, an image needs none in a row, and for whole rows one on the coordinate instead of a branch. What a
kernel writes is never a view: the tensor then is a buffer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from tvm_build.ops import blocks

Memory = Literal["buffer", "constant", "view", "image"]


@dataclass(frozen=True)
class Parameter:
    """One pointer or image that a kernel takes.

    Attributes:
        lines: how many there are; an image's height.
        width: vectors in a line; an image's width.
        dtype: TVM's name for a vector; an image's and a view's has four lanes.
        memory: where it lies.
    """

    lines: int
    width: int
    dtype: str
    memory: Memory = "buffer"

    @property
    def elements(self) -> int:
        """Vectors in all."""
        return self.lines * self.width

    @property
    def scalar(self) -> str:
        """Type of a single number."""
        return self.dtype.partition("x")[0]


def run(elements: int, dtype: str, memory: Memory = "buffer") -> Parameter:
    """A parameter that is a single line."""
    return Parameter(1, elements, dtype, memory)


def c4(shape: tuple[int, int, int, int], dtype: str, memory: Memory = "buffer") -> Parameter:
    """A C4 tensor of the logical shape [N, C, H, W]; `dtype` is that of a vector of four."""
    batch, channels, height, width = shape
    return Parameter(batch * blocks(channels) * height, width, dtype, memory)


@dataclass(frozen=True)
class Stored:
    """A parameter inside of a kernel: what `Body.load` and `Body.store` take."""

    handle: Any
    parameter: Parameter

    @property
    def is_image(self) -> bool:
        """Whether it is an image of lines."""
        return self.parameter.memory == "image"

    @property
    def is_view(self) -> bool:
        """Whether it is a buffer that is read as an image."""
        return self.parameter.memory == "view"

    @property
    def dtype(self) -> str:
        """Type of its vectors."""
        return self.parameter.dtype

    def __getitem__(self, index: Any) -> Any:
        """A vector of a pointer, in the type it is stored as."""
        return self.handle[index]


@dataclass(frozen=True)
class Line:
    """A place in a parameter: a pointer's element, or an image's texel (x, y)."""

    stored: Stored
    start: Any
    y: Any = None

    def beyond(self, offset: Any) -> Line:
        """The place `offset` elements of a pointer, or lines of an image, further on: what tables of offsets count."""
        if self.stored.is_image:
            return replace(self, y=self.y + offset)
        return replace(self, start=self.start + offset)
