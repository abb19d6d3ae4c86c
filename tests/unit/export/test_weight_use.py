"""Which weights meet the image, against running the convolution itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export.fixed_point import shrink_fully
from export.weight_use import WeightUse
from structadmm.graph import GraphModule, capture
from structadmm.graph.ir import Node, Ref, StateRef
from tests.removal_probe import probe

OUTPUTS, INPUTS = 4, 4


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Conv2d | nn.ConvTranspose2d, tuple[int, int]]:
    """A convolution with few weights that are not zero, and the size it runs at."""
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    size = (draw(st.integers(1, 5)), draw(st.integers(1, 6)))
    options: dict[str, Any] = {"dilation": draw(st.integers(1, 3)), "groups": draw(st.sampled_from((1, 2)))}
    kind = draw(st.sampled_from((nn.Conv2d, nn.ConvTranspose2d)))
    padding: Any = (draw(st.integers(0, 3)), draw(st.integers(0, 2)))
    if kind is nn.Conv2d and draw(st.booleans()):
        padding, stride = draw(st.sampled_from(("same", "valid"))), (1, 1)
    layer = kind(INPUTS, OUTPUTS, kernel, stride, padding, bias=False, **options).double()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    with torch.no_grad():
        # Whole numbers: sums of different order are equal. Many zeros, and taps that are equal.
        layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape, generator=generator))
        layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator) < draw(st.sampled_from((0.2, 1.0))))
        if draw(st.booleans()):
            layer.weight.copy_(layer.weight[..., :1, :1].expand_as(layer.weight))
    return layer, size


def node_of(layer: nn.Conv2d | nn.ConvTranspose2d, shape: tuple[int, ...]) -> Node:
    """The call of `layer` as it is traced."""
    op = "aten.conv2d.padding" if isinstance(layer.padding, str) else "aten.conv2d.default"
    options: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, nn.ConvTranspose2d):
        op, options = "aten.conv_transpose2d.input", (layer.stride, layer.padding, (0, 0), layer.groups, layer.dilation)
    return Node("conv", op, (Ref("x"), StateRef("weight"), None, *options), {}, (shape,))


# The odd column that torch appends for an even kernel is the point here.
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=300, deadline=None, derandomize=True, phases=[Phase.generate])
@given(case=layers())
def test_what_is_read_and_what_a_constant_becomes_is_what_the_convolution_shows(
    case: tuple[nn.Conv2d | nn.ConvTranspose2d, tuple[int, int]],
) -> None:
    layer, size = case
    try:
        # One at a time: the picture that each input channel makes in each output channel.
        pictures = layer(torch.eye(INPUTS, dtype=torch.float64)[:, :, None, None].expand(-1, -1, *size))
    except RuntimeError:
        assume(False)  # the kernel does not fit
    assume(pictures.numel() > 0)
    use = WeightUse(node_of(layer, tuple(pictures.shape)), layer.weight.detach(), size)
    uneven = use.uneven(torch.arange(INPUTS))
    flat = pictures.detach().flatten(2).transpose(0, 1)  # [outputs, inputs, places]
    assert torch.equal(uneven, (flat != flat[..., :1]).any(dim=2))
    assert torch.equal(use.sums[~uneven], flat[..., 0][~uneven])
    # A channel is read if some pixel of it matters.
    points = torch.eye(INPUTS * size[0] * size[1], dtype=torch.float64).reshape(-1, INPUTS, *size)
    seen = (layer(points) != 0).flatten(2).any(dim=2).reshape(INPUTS, -1, OUTPUTS).any(dim=1).T
    assert torch.equal(use.reads, seen)


def shrunk(model: nn.Module, size: int) -> dict[str, Tensor]:
    """The smaller network's tensors, after seeing that it computes the same."""
    shape = (1, 3, size, size)
    network = capture(model.double().eval(), (torch.zeros(shape, dtype=torch.float64),))
    _, smaller = shrink_fully(*network)
    inputs = torch.randn(2, *shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = model(inputs)
    error = (GraphModule(smaller.graph, smaller.state).eval()(inputs) - expected).abs().max()
    assert error <= 1e-10 * expected.abs().max()
    probe(smaller)
    return smaller.state


def test_a_channel_that_is_read_by_weights_over_the_padding_alone_goes() -> None:
    # At 2x2 a kernel of dilation 2 has its middle on the image, and all else beside it.
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 2, 3, padding=2, dilation=2))
    with torch.no_grad():
        model[2].weight[:, 1, 1, 1] = 0
    assert shrunk(model, 2)["0.weight"].shape[0] == 3
    assert shrunk(model, 4)["0.weight"].shape[0] == 4


def test_a_constant_that_padding_does_not_reach_is_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 2, 3, padding=1))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[:, 1] = 0
        model[2].weight[:, 1, 1, 1] = 0.5  # column pruning left the middle
    assert shrunk(model, 6)["0.weight"].shape[0] == 3


def test_a_constant_in_front_of_an_even_transposed_convolution_is_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.ConvTranspose2d(4, 2, 2, 2))
    with torch.no_grad():
        model[0].weight[1:3] = 0
        model[2].weight[1] = torch.tensor([0.5, -0.25])[:, None, None]  # the same at all four places
    assert shrunk(model, 6)["0.weight"].shape[0] == 3


def test_a_depthwise_filter_over_the_padding_alone_emits_a_constant() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        model[2].weight[2, 0, 1, 1] = 0
    assert shrunk(model, 2)["0.weight"].shape[0] == 3


class Pooled(nn.Module):
    """A constant that padding turns into a picture, and a mean over the picture that is a constant again."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 4, 3, padding=1), middle, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x).sigmoid()).mean((2, 3)))


@pytest.mark.parametrize(
    "middle",
    [
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(2, divisor_override=3),
        nn.Sequential(nn.CircularPad2d(1), nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3, groups=4)),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.PReLU(4), nn.MaxPool2d(2)),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=4), nn.Upsample(scale_factor=2, mode="bilinear")),
    ],
)
def test_the_mean_over_what_padding_makes_of_a_constant_is_folded(middle: nn.Module) -> None:
    model = Pooled(middle)
    with torch.no_grad():
        model.first.weight[1] = 0
    assert shrunk(model, 6)["first.weight"].shape[0] == 3


def test_a_picture_in_front_of_a_linear_is_folded_pixel_by_pixel() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Flatten(), nn.Linear(144, 2)
    )
    with torch.no_grad():
        model[0].weight[1] = 0
    assert shrunk(model, 6)["4.weight"].shape == (2, 108)


def test_a_group_of_different_constants_is_normalised_to_other_constants() -> None:
    model = Pooled(nn.GroupNorm(2, 4))
    with torch.no_grad():
        model.first.weight[:2] = 0  # both of a group; their biases differ
    assert shrunk(model, 6)["first.weight"].shape[0] == 2
