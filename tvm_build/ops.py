"""What a kernel must compute: one frozen description per fused operator, the key of the schedule choice.

Activations of 4-D tensors live in channel blocks of four ("C4"): `[N, ceil(C / 4), H, W]` elements of `float4`,
channel `c` being lane `c % 4` of block `c // 4`. Lanes beyond the last channel are written as finite numbers and meet
zero weights wherever they are read, so no channel count is a special case. Everything else (2-D tensors, operators
without a schedule of ours) is plain row-major.

C4 tensors lie in buffers or in images. `images` of an operator names those in images by role, sorted: "input0",
"input1", ..., "output", "residual". `views` names inputs that lie in buffers and are read as images of one dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Activation = Literal["none", "relu", "relu6", "hard_swish", "hard_sigmoid", "sigmoid", "silu"]


def blocks(channels: int) -> int:
    """Channel blocks of four that hold `channels` channels."""
    return -(-channels // 4)


@dataclass(frozen=True)
class Conv2d:
    """`activation(conv(x, w) + bias [+ residual])`; the residual has the output's shape.

    Attributes:
        padding: (top, left, bottom, right), in pixels.
        shortcut: a second convolution, of another input, whose result is added. Its own activation, residual and
            shortcut are not used, and its bias is part of this one's.
        filter_sets: image k of the batch has filters of its own, set `k % filter_sets`; only with 1x1 kernels and
            `groups == 1`. The weight then is `[filter_sets * O, I, 1, 1]`.
        columns: kept reduction indices `i * kh * kw + y * kw + x`, ascending, for every filter alike; None means all
            of them. Only with `groups == 1`.
    """

    batch: int
    in_channels: int
    in_height: int
    in_width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: Activation = "none"
    has_residual: bool = False
    columns: tuple[int, ...] | None = None
    shortcut: Conv2d | None = None
    filter_sets: int = 1
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        span = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.in_height + self.padding[0] + self.padding[2] - span) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Pixels in a row of the output."""
        span = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.in_width + self.padding[1] + self.padding[3] - span) // self.stride[1] + 1

    @property
    def reduction(self) -> int:
        """Multiply-adds per output value."""
        full = self.in_channels // self.groups * self.kernel[0] * self.kernel[1]
        return full if self.columns is None else len(self.columns)

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole operator."""
        own = self.batch * self.out_channels * self.out_height * self.out_width * self.reduction
        return own + (self.shortcut.macs if self.shortcut is not None else 0)


@dataclass(frozen=True)
class Pool2d:
    """Max or average pooling on C4. `count_include_pad` matters for averages only."""

    kind: Literal["max", "avg"]
    batch: int
    channels: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int] = (1, 1)
    count_include_pad: bool = False
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dense:
    """`activation(x @ w.T + bias)`.

    `x` is plain `[N, K]`, or with `input_is_c4` C4 `[N, K / 4, H, W]`, averaged over its `pooled_pixels` = H * W. With
    `pooled_pixels` = 1, K is every number of a C4 tensor in the order of memory. `input_width` is the length of a row
    of that tensor; only images care.
    """

    batch: int
    in_features: int
    out_features: int
    activation: Activation = "none"
    pooled_pixels: int = 1
    input_is_c4: bool = False
    input_width: int = 1
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class GlobalAverage:
    """Mean over H and W: C4 in; C4 `[N, C / 4, 1, 1]` out."""

    batch: int
    channels: int
    height: int
    width: int
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class Elementwise:
    """`activation(a OP b)`, or `activation(a)` for "copy", on C4 tensors of one shape.

    With `broadcast_pixels`, b is `[N, C / 4, 1, 1]` (squeeze-and-excite).
    """

    operator: Literal["add", "mul", "sub", "copy"]
    batch: int
    channels: int
    height: int
    width: int
    activation: Activation = "none"
    broadcast_pixels: bool = False
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pack:
    """Plain NCHW float32 to C4 of the compute type, the lanes beyond the last channel set to zero."""

    batch: int
    channels: int
    height: int
    width: int
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unpack:
    """C4 to plain NCHW."""

    batch: int
    channels: int
    height: int
    width: int
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConcatChannels:
    """C4 tensors joined along the channels, also where an offset is no multiple of four."""

    batch: int
    channels: tuple[int, ...]
    height: int
    width: int
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interleave:
    """Phases of an image, each in channels of its own, put between each other: the end of a transposed convolution.

    C4 `[N, sy * sx * C', in_height, in_width]` to `[N, C, out_height, out_width]`, where C' is C rounded up to four:
    pixel (y, x) is pixel ((y + top) / sy, (x + left) / sx) of phase ((y + top) % sy, (x + left) % sx), those along x
    being neighbours.

    Attributes:
        stride: sy and sx.
        crop: top and left, below sy and sx.
    """

    batch: int
    channels: int
    in_height: int
    in_width: int
    stride: tuple[int, int]
    crop: tuple[int, int]
    out_height: int
    out_width: int
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class WinogradInput:
    """C4 `[N, C, H, W]` to `[N * n * n, C, tiles_y, tiles_x]`, n = tile + 2: `tvm_build.kernels.winograd`.

    Attributes:
        tile: m of F(m, 3): 2 or 4.
        out_height: of the convolution.
        out_width: of the convolution.
        padding: of the convolution.
    """

    tile: int
    batch: int
    channels: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    padding: tuple[int, int, int, int]
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()

    @property
    def tiles_y(self) -> int:
        """Tiles in a column of the image."""
        return -(-self.out_height // self.tile)

    @property
    def tiles_x(self) -> int:
        """Tiles in a row of the image."""
        return -(-self.out_width // self.tile)


@dataclass(frozen=True)
class WinogradOutput:
    """C4 `[N * n * n, C, tiles_y, tiles_x]` to `[N, C, out_height, out_width]`, then bias, residual and activation."""

    tile: int
    batch: int
    channels: int
    out_height: int
    out_width: int
    activation: Activation = "none"
    has_residual: bool = False
    images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()

    @property
    def tiles_y(self) -> int:
        """Tiles in a column of the image."""
        return -(-self.out_height // self.tile)

    @property
    def tiles_x(self) -> int:
        """Tiles in a row of the image."""
        return -(-self.out_width // self.tile)


Operator = (
    Conv2d
    | Pool2d
    | Dense
    | GlobalAverage
    | Elementwise
    | Pack
    | Unpack
    | ConcatChannels
    | Interleave
    | WinogradInput
    | WinogradOutput
)


def memory_of(op: Operator, role: str) -> Literal["buffer", "image", "view"]:
    """Where an operator's tensor lies, or how it reads one that lies in a buffer."""
    return "image" if role in op.images else "view" if role in op.views else "buffer"


def with_images(op: Operator, roles: Iterable[str], views: Iterable[str] = ()) -> Operator:
    """`op` with the C4 tensors of these roles in images, all others in buffers; `views` of them it reads as images."""
    images, views = tuple(sorted(roles)), tuple(sorted(views))
    if isinstance(op, Conv2d) and op.shortcut is not None:
        shortcut = replace(
            op.shortcut,
            images=("input0",) if "input1" in images else (),
            views=("input0",) if "input1" in views else (),
        )
        return replace(op, images=images, views=views, shortcut=shortcut)
    return replace(op, images=images, views=views)
