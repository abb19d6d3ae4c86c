from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.config import ExportConfig
from export.export_network import export_network
from export.fixed_point import shrink_fully
from structadmm.graph import GraphModule, capture
from structadmm.graph.count import count
from structadmm.graph.save import load_network

# The same non-zero terms in float64; only their order differs.
TOLERANCE = 1e-10
SHAPE = (1, 3, 24, 24)


class Residual(nn.Module):
    """A residual block of which the second convolution has dead filters; `exposed` also uses its result elsewhere."""

    def __init__(self, *, kernel: int = 3, channels: int = 64, exposed: bool = False, constant: float = 0.0) -> None:
        super().__init__()
        self.exposed = exposed
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 4)
        self.dead = torch.arange(channels) % 4 != 1
        with torch.no_grad():
            self.bn.running_mean.uniform_(-1, 1)
            self.bn.bias.normal_()
            self.conv2.weight[self.dead] = 0
            self.bn.running_mean[self.dead] = 0
            self.bn.bias[self.dead] = constant

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        branch = self.bn(self.conv2(functional.relu(self.conv1(x))))
        y = self.head(functional.relu(branch + x).mean((2, 3)))
        return y + branch.mean((1, 2, 3)).view(-1, 1) if self.exposed else y


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_filters_dead_in_one_branch_of_a_sum_are_not_computed() -> None:
    model = Residual().double().eval()
    graph, state = capture(model, (torch.zeros(SHAPE, dtype=torch.float64),))
    removal, smaller = shrink_fully(graph, state)
    assert removal.removed == {}  # the other branch needs every channel
    assert smaller.state["conv2.weight"].shape == (16, 64, 3, 3)
    assert smaller.state["bn.running_var"].shape == (16,)
    assert smaller.kept["conv2.weight", 0].tolist() == torch.nonzero(~model.dead).flatten().tolist()
    assert count(smaller.graph).macs == count(graph).macs - 48 * 64 * 9 * 24 * 24
    module = GraphModule(smaller.graph, smaller.state)
    inputs = torch.randn(3, *SHAPE[1:], dtype=torch.float64)
    assert (module.eval()(inputs) - model(inputs)).abs().max() < TOLERANCE
    module.train()(inputs).sum().backward()
    assert bool(module.get_parameter("conv2.weight").grad.any())


@pytest.mark.parametrize(
    "model",
    [
        Residual(kernel=1, channels=16),  # few multiplications: moving channels costs more
        Residual(exposed=True),  # somebody else reads the branch
        Residual(constant=0.5),  # dead, but not zero
    ],
)
def test_a_sum_is_left_alone_where_compacting_does_not_pay_or_would_be_wrong(model: Residual) -> None:
    model = model.double().eval()
    graph, state = capture(model, (torch.zeros(SHAPE, dtype=torch.float64),))
    _, smaller = shrink_fully(graph, state)
    assert smaller.state["conv2.weight"].shape == model.conv2.weight.shape
    inputs = torch.randn(2, *SHAPE[1:], dtype=torch.float64)
    assert (GraphModule(smaller.graph, smaller.state).eval()(inputs) - model(inputs)).abs().max() < TOLERANCE


def test_a_compacted_sum_survives_onnx_and_saving(tmp_path: Path) -> None:
    model = Residual().eval()
    record = export_network(model, torch.zeros(SHAPE), tmp_path, config=ExportConfig(batch=2))
    assert record["layers"][2]["shrunk_shape"] == [16, 64, 3, 3]
    inputs = torch.randn(3, *SHAPE[1:])
    # float32: the same sums in another order.
    assert torch.allclose(load_network(tmp_path / "shrunk")(inputs), model(inputs), atol=1e-5)
