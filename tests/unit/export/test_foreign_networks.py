"""Networks written as this project's own are not: each is exact, or refused in one line that says what to do."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from export.export_network import export_network
from export.fixed_point import shrink_fully
from export.foreign import read_weights
from export.shrink import rounded
from export.verify import MASKED_VS_SHRUNK, MASKED_VS_SHRUNK_DOUBLE
from structadmm.errors import UserError
from structadmm.graph import Captured, GraphModule, capture
from structadmm.graph.module import flat_outputs
from tests.architectures import in_float64, randomise
from tests.random_networks import with_structured_zeros

IMAGE = (1, 3, 12, 12)
Result = namedtuple("Result", "scores features")


class Network(nn.Module):
    """Three convolutions and a classifier, called as `forward` says; `extra` are layers of its own."""

    def __init__(self, forward: Callable[..., Any], **extra: nn.Module | Tensor) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3)
        self.bn, self.head = nn.BatchNorm2d(8), nn.Linear(12, 5)
        self.run = forward
        for name, value in extra.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                self.add_module(name, value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)

    def start(self, x: Tensor) -> Tensor:
        return functional.silu(self.bn(self.a(x)))

    def end(self, x: Tensor) -> Tensor:
        return self.head(self.c(functional.relu(x)).mean((2, 3)))


def in_place(net: Network, x: Tensor) -> Tensor:
    y = net.a(x)
    y += 1
    y.mul_(0.5).relu_()
    z = net.b(y)
    z -= y
    return net.end(z.clamp_(-1, 1))


def two_sizes(net: Network, x: Tensor) -> Tensor:
    y = net.start(x)
    wide = functional.conv2d(y, net.b.weight, net.b.bias, padding=2, dilation=2)
    return net.end(net.b(y)) + net.end(wide)


def uneven(net: Network, x: Tensor) -> Tensor:
    first, second, third = net.start(x).chunk(3, -3)
    return net.end(torch.cat([net.d(first) + net.d(second), net.e(third)], -3))


EXACT: dict[str, tuple[Callable[[], Network], tuple[tuple[int, ...], ...]]] = {
    "in-place operators": (lambda: Network(in_place), (IMAGE,)),
    "one normalisation called twice": (
        lambda: Network(lambda n, x: n.end(functional.relu(n.bn(n.b(n.start(x)))))), (IMAGE,),
    ),
    "one weight as it is and transposed": (
        lambda: Network(lambda n, x: n.end(n.b(functional.conv2d(n.start(x), n.b.weight.transpose(0, 1), padding=1)))),
        (IMAGE,),
    ),
    "one weight at two dilations": (lambda: Network(two_sizes), (IMAGE,)),
    "instance normalisation by past statistics": (
        lambda: Network(
            lambda n, x: n.end(n.b(n.norm(n.a(x)).relu())),
            norm=nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        ),
        (IMAGE,),
    ),
    "comparisons": (
        lambda: Network(lambda n, x: n.end((y := n.b(n.start(x))).masked_fill(y < 0, 0.0) * (y > -1).float())),
        (IMAGE,),
    ),
    "a branch by torch.where": (
        lambda: Network(lambda n, x: n.end(torch.where((y := n.b(n.start(x))) > 0, y, 0.1 * y))), (IMAGE,),
    ),
    "normalised features": (lambda: Network(lambda n, x: n.end(functional.normalize(n.b(n.start(x))))), (IMAGE,)),
    "a conversion that changes nothing": (
        lambda: Network(lambda n, x: n.end(n.b(n.start(x.float()).float()))), (IMAGE,),
    ),
    "uneven chunks": (
        lambda: Network(uneven, d=nn.Conv2d(3, 4, 1), e=nn.Conv2d(2, 4, 1)), (IMAGE,),
    ),
    "two outputs, and a dictionary": (
        lambda: Network(lambda n, x: {"features": (y := n.b(n.start(x))), "scores": n.end(y)}), (IMAGE,),
    ),
    "two inputs": (
        lambda: Network(
            lambda n, x, v: n.end(n.b(n.start(x) * n.d(v).sigmoid()[:, :, None, None])), d=nn.Linear(6, 8)
        ),
        (IMAGE, (1, 6)),
    ),
    "channels of zeros": (
        lambda: Network(
            lambda n, x: n.end(n.d(torch.cat([y := n.start(x), torch.zeros_like(y[:, :4])], 1))), d=nn.Conv2d(12, 8, 1)
        ),
        (IMAGE,),
    ),
    "a buffer of one number per channel": (
        lambda: Network(lambda n, x: n.end(n.b(n.start(x) * n.scale[:, None, None])), scale=torch.rand(8) + 0.5),
        (IMAGE,),
    ),
    "circular padding, dilation, groups, a channel multiplier": (
        lambda: Network(
            lambda n, x: n.end(n.e(n.d(n.start(x)))),
            d=nn.ConvTranspose2d(8, 16, 3, 2, 1, groups=8, dilation=2),
            e=nn.Conv2d(16, 8, 3, padding=2, dilation=2, groups=8, padding_mode="circular"),
        ),
        (IMAGE,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_a_network_written_in_another_way_stays_the_same_function(name: str) -> None:
    builder, shapes = EXACT[name]
    torch.manual_seed(0)
    model = randomise(builder(), torch.Generator().manual_seed(0)).train()
    graph, state = capture(model, tuple(torch.zeros(shape) for shape in shapes))
    assert model.training
    zeros = with_structured_zeros(graph, state, 0.5, seed=1)
    masked = in_float64(Captured(graph, zeros))
    removal, smaller = shrink_fully(*masked)
    assert removal.count > 0
    model.load_state_dict({key: zeros[key] for key in model.state_dict()})
    single = rounded(smaller, torch.float32)
    inputs = [torch.randn(3, *shape[1:], generator=torch.Generator().manual_seed(2)) for shape in shapes]
    with torch.no_grad():
        assert_same(model.eval()(*inputs), GraphModule(single.graph, single.state).eval()(*inputs), MASKED_VS_SHRUNK)
        doubles = [value.double() for value in inputs]
        exact = GraphModule(smaller.graph, smaller.state).eval()
        assert_same(GraphModule(*masked).eval()(*doubles), exact(*doubles), MASKED_VS_SHRUNK_DOUBLE)


def assert_same(expected: Any, arrived: Any, tolerance: float) -> None:
    for one, other in zip(flat_outputs(expected), flat_outputs(arrived), strict=True):
        assert (one - other).abs().max() <= tolerance * one.abs().max().clamp(min=1.0)


def pruned_by_torch() -> Network:
    model = Network(lambda n, x: n.end(n.b(n.start(x))))
    prune.ln_structured(model.b, "weight", amount=0.5, n=2, dim=0)
    return model


def without_gradient(net: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.start(x)
    return net.end(y)


def overwritten(net: Network, x: Tensor) -> Tensor:
    y = net.start(x)
    y[:, 2:4] = 0
    return net.end(y)


REFUSED: dict[str, tuple[Callable[[], Network], str]] = {
    "batches that are joined": (
        lambda: Network(lambda n, x: n.end(torch.cat([y := n.start(x), n.b(y)], 0))),
        r"aten\.cat.*\[cat\] makes of two samples together something else.*compute on each sample by itself",
    ),
    "a batch dimension that is squeezed away": (
        lambda: Network(lambda n, x: n.head(n.c(n.start(x)).mean((2, 3), keepdim=True).squeeze())),
        r"head \[linear\] makes of two samples.*squeeze dimensions by number",
    ),
    "statistics of the batch": (
        lambda: Network(lambda n, x: n.end(n.norm(n.a(x))), norm=nn.BatchNorm2d(8, track_running_stats=False)),
        r"norm \[batch_norm\] makes of two samples",
    ),
    "weight_norm": (
        lambda: Network(lambda n, x: n.end(n.d(n.start(x))), d=weight_norm(nn.Conv2d(8, 8, 1))),
        r"_weight_norm.* at d\.parametrizations.*remove_parametrizations\(layer, 'weight'\)",
    ),
    "masks of torch.nn.utils.prune": (
        pruned_by_torch, r"b multiplies its weight by a mask.*prune\.remove\(layer, 'weight'\)",
    ),
    "dropout in evaluation mode": (
        lambda: Network(lambda n, x: n.end(functional.dropout(n.start(x)))),
        r"aten\.dropout\.default.*\[dropout\] is random in evaluation mode.*training=self\.training",
    ),
    "a part without gradient": (lambda: Network(without_gradient), r"submod.*leave torch\.no_grad"),
    "half precision inside": (
        lambda: Network(lambda n, x: n.end(n.start(x).half().float())),
        r"node to turns float32 into float16.*leave \.half",
    ),
    "a named tuple": (
        lambda: Network(lambda n, x: Result(n.end(y := n.start(x)), y)), r"returns a namedtuple: return a tensor",
    ),
    "a slice that is overwritten": (
        lambda: Network(overwritten), r"fill_.*changes a tensor in place that .* also reads",
    ),
    "a pool with a divisor of its own": (
        lambda: Network(lambda n, x: n.end(functional.avg_pool2d(n.start(x), 2, divisor_override=3))),
        r"\[avg_pool2d\] has a divisor of its own.*multiply behind it",
    ),
    "an operator that ONNX export has for other shapes only": (
        lambda: Network(
            lambda n, x: n.d(functional.scaled_dot_product_attention(t := n.start(x).flatten(2), t, t)),
            d=nn.Linear(144, 2),
        ),
        r"torch\.onnx cannot express the network at aten\.scaled_dot_product_attention.*only 4D",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_refused_in_one_line_that_says_what_to_change(name: str, tmp_path: Path) -> None:
    builder, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        export_network(builder(), torch.zeros(IMAGE), tmp_path / "out")
    assert str(error.value).isprintable()
    assert not (tmp_path / "out" / "export.json").exists()


def test_masks_of_torch_prune_in_a_file_of_weights_are_applied(tmp_path: Path) -> None:
    model = pruned_by_torch()
    torch.save(model.state_dict(), tmp_path / "net.pt")
    weights = read_weights(tmp_path / "net.pt")
    assert set(weights) == set(Network(lambda n, x: x).state_dict())
    assert torch.equal(weights["b.weight"], model.b.weight)
    assert int((weights["b.weight"].flatten(1) == 0).all(dim=1).sum()) == 4
