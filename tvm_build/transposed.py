"""A transposed convolution as an ordinary one and a rearrangement of pixels.

Output pixel o of a transposed convolution with stride s adds up the taps k of input pixels i with `s i + k = o + pad`.
Pixels of equal `(o + pad) % s`, a *phase*, therefore read the same taps: `s * s` ordinary convolutions with stride 1
and kernels of `ceil(k / s)` taps, which are one with `s * s` times the filters (sub-pixel convolution, Shi et al. 2016,
arXiv 1609.05158). A phase that has fewer taps than another gets zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from tvm_build.network import Array
from tvm_build.ops import Conv2d, Interleave, blocks


@dataclass(frozen=True)
class Phases:
    """What a transposed convolution is made of.

    Attributes:
        conv: computes all phases, each in channels of its own, as many as `blocks` of the output's have.
        weight: of it, [O, I, taps_y, taps_x].
        interleave: puts their pixels between each other; None with stride 1.
    """

    conv: Conv2d
    weight: Array
    interleave: Interleave | None


@dataclass(frozen=True)
class _Axis:
    """Along one axis: taps of a phase, padding of the convolution, and pixels that are cut off in front."""

    taps: int
    padding: tuple[int, int]
    crop: int


def _axis(kernel: int, stride: int, before: int, size: int, out_size: int) -> _Axis:
    taps = -(-kernel // stride)
    first, last = before // stride, (before + out_size - 1) // stride  # of a phase's pixels, those that are wanted
    return _Axis(taps, (taps - 1 - first, last - (size - 1)), before - first * stride)


def as_phases(
    shape: tuple[int, int, int, int],
    weight: Array,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    out_size: tuple[int, int],
) -> Phases | None:
    """Take a transposed convolution without groups apart.

    Args:
        shape: of the input, NCHW.
        weight: [I, O, kh, kw].
        stride: along y and x.
        padding: (top, left, bottom, right), what is cut off the full result.
        dilation: along y and x.
        out_size: height and width of the result.

    Returns:
        None if so much is cut off that some input pixel has no part in the result.
    """
    weight = _dilated(weight, dilation)
    inputs, outputs, kernel = weight.shape[0], weight.shape[1], weight.shape[2:]
    y, x = (_axis(kernel[i], stride[i], padding[i], shape[i + 2], out_size[i]) for i in range(2))
    if min(*y.padding, *x.padding) < 0:
        return None
    # A single phase needs no whole blocks of channels.
    channels = outputs if stride == (1, 1) else 4 * blocks(outputs)
    taken = np.zeros((stride[0], stride[1], channels, inputs, y.taps, x.taps), weight.dtype)
    for row, column in product(range(stride[0]), range(stride[1])):
        phase = weight[:, :, row :: stride[0], column :: stride[1]].transpose(1, 0, 2, 3)
        # The last tap of a phase reads the first pixel of the window.
        taken[row, column, :outputs, :, y.taps - phase.shape[2] :, x.taps - phase.shape[3] :] = phase[:, :, ::-1, ::-1]
    conv = Conv2d(
        batch=shape[0],
        in_channels=inputs,
        in_height=shape[2],
        in_width=shape[3],
        out_channels=stride[0] * stride[1] * channels,
        kernel=(y.taps, x.taps),
        padding=(y.padding[0], x.padding[0], y.padding[1], x.padding[1]),
    )
    phases = taken.reshape(conv.out_channels, inputs, y.taps, x.taps)
    interleave = Interleave(
        shape[0], outputs, conv.out_height, conv.out_width, stride, (y.crop, x.crop), out_size[0], out_size[1]
    )
    return Phases(conv, phases, None if stride == (1, 1) else interleave)


def per_phase(values: Array, op: Interleave, beyond: float) -> Array:
    """A number per channel [C], as the convolution that computes the phases has its channels; `beyond` for the rest."""
    padded = np.full(4 * blocks(op.channels), beyond, values.dtype)
    padded[: op.channels] = values
    return np.tile(padded, op.stride[0] * op.stride[1])


def _dilated(weight: Array, dilation: tuple[int, int]) -> Array:
    if dilation == (1, 1):
        return weight
    spans = (dilation[i] * (weight.shape[i + 2] - 1) + 1 for i in range(2))
    spread = np.zeros((*weight.shape[:2], *spans), weight.dtype)
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    return spread
