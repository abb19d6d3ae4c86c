"""Transposed convolutions as ordinary ones, against PyTorch's in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.kernel_references import interleaved
from tvm_build.ops import blocks
from tvm_build.transposed import as_phases, per_phase


def settings() -> list[tuple[int, int, int, int, int]]:
    """Kernel, stride, padding, output padding and dilation along one axis, as far as PyTorch takes them."""
    return [
        (kernel, stride, padding, extra, dilation)
        for kernel, stride, padding, extra, dilation in product((1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2), (0, 1), (1, 2))
        if extra < max(stride, dilation) and padding <= dilation * (kernel - 1)
    ]


@pytest.mark.parametrize("other", [(3, 2, 1, 1, 1), (2, 1, 0, 0, 1)], ids=["strided", "plain"])
@pytest.mark.parametrize("axis", settings())
def test_the_phases_put_together_are_the_transposed_convolution(
    axis: tuple[int, int, int, int, int], other: tuple[int, int, int, int, int]
) -> None:
    kernel, stride, padding, extra, dilation = (tuple(pair) for pair in zip(axis, other, strict=True))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 6, *kernel, generator=generator, dtype=torch.float64)
    expected = functional.conv_transpose2d(x, weight, None, stride, padding, extra, 1, dilation)
    found = as_phases(tuple(x.shape), weight.numpy(), stride, (*padding, *padding), dilation, tuple(expected.shape[2:]))  # type: ignore[arg-type]
    assert found is not None
    conv: Any = found.conv
    top, left, bottom, right = conv.padding
    padded = functional.pad(x, (left, right, top, bottom))
    y = functional.conv2d(padded, torch.from_numpy(found.weight)).numpy()
    assert y.shape == (2, conv.out_channels, conv.out_height, conv.out_width)
    if found.interleave is not None:
        assert conv.out_channels == stride[0] * stride[1] * 4 * blocks(6)
        y = interleaved(found.interleave, y)
    assert np.abs(y - expected.numpy()).max() < 1e-12


def test_a_kernel_as_wide_as_its_stride_is_a_product_of_single_pixels() -> None:
    found = as_phases((1, 8, 4, 4), np.ones((8, 4, 2, 2), np.float32), (2, 2), (0, 0, 0, 0), (1, 1), (8, 8))
    assert found is not None
    assert (found.conv.kernel, found.conv.padding, found.conv.out_channels) == ((1, 1), (0, 0, 0, 0), 16)


def test_a_result_that_leaves_pixels_out_is_no_padded_convolution() -> None:
    # Two rows are cut off each side of a kernel of one: the first input row has no part in it.
    assert as_phases((1, 1, 4, 4), np.ones((1, 1, 1, 1)), (2, 2), (2, 2, 2, 2), (1, 1), (3, 3)) is None


def test_numbers_per_channel_are_repeated_for_each_phase() -> None:
    found = as_phases((1, 1, 2, 2), np.ones((1, 3, 2, 2)), (2, 2), (0, 0, 0, 0), (1, 1), (4, 4))
    assert found is not None and found.interleave is not None
    assert per_phase(np.array([5.0, 6.0, 7.0]), found.interleave, 1.0).tolist() == [5.0, 6.0, 7.0, 1.0] * 4
