from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from export.onnx_export import export_onnx
from structadmm.errors import UserError
from structadmm.graph import capture
from structadmm.graph.ir import Graph
from structadmm.progress import SilentReporter
from train.costs import CostTable, Extent, Ints, load_costs
from tvm_build.bundle import read_bundle
from tvm_build.gpu import gpu_by_name
from tvm_build.import_onnx import import_onnx
from tvm_build.network import Network, Node, Port, Tensor
from tvm_build.ops import Conv2d
from tvm_build.precision import FLOAT32
from tvm_build.recognize import recognize
from tvm_build.tuning.layer_costs import costs_table, layer_grids

GPU = gpu_by_name("opencl-cpu")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.last(torch.relu(self.depthwise(torch.relu(self.first(x)))))
        return value


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Network]:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    graph, state = capture(Small().eval(), (torch.zeros(1, 3, 6, 6),))
    export_onnx(graph, state, path)
    return graph, recognize(import_onnx(path))


def flops_as_ms(bundle: Path) -> Sequence[float]:
    """A device that does a MFLOP in a millisecond, whatever the kernel."""
    return [launch.flops / 1e6 for launch in read_bundle(bundle).plan.launches]


def extent(filters: int, columns: int, inputs: int) -> Extent:
    def of(value: int) -> Ints:
        return torch.tensor([value]).numpy()

    return Extent(of(filters), of(columns), of(inputs))


def test_the_measured_table_is_one_that_training_reads(small: tuple[Graph, Network], tmp_path: Path) -> None:
    graph, network = small
    grids = layer_grids(network, 2)
    table = costs_table(
        grids, GPU, FLOAT32, None, flops_as_ms, whole_ms=1.0, source="a test", reporter=SilentReporter()
    )
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(table))
    costs: CostTable = load_costs(path, graph)
    assert set(costs.layers) == {"first", "depthwise", "last"}
    pixels, mflop = 36, 1e6
    # Points of the grid are what was measured, and between them the cost is linear.
    assert costs.cost("first", 9, extent(8, 27, 3)) == pytest.approx(2 * pixels * 8 * 27 / mflop)
    assert costs.cost("first", 9, extent(6, 27, 3)) == pytest.approx(2 * pixels * 6 * 27 / mflop)
    assert costs.cost("last", 1, extent(12, 4, 4)) == pytest.approx(2 * pixels * 12 * 4 / mflop)
    # Columns that were removed within an input: the compacted kernel's grid.
    assert costs.cost("first", 9, extent(8, 16, 3)) == pytest.approx(2 * pixels * 8 * 16 / mflop)
    assert "compact" not in table["layers"]["depthwise"]
    assert costs.cost("depthwise", 9, extent(4, 9, 1)) == pytest.approx(2 * pixels * 4 * 9 / mflop)
    whole = sum(2 * pixels * macs for macs in (8 * 27, 8 * 9, 12 * 8)) / mflop
    assert costs.rest == pytest.approx(1.0 - whole, abs=1e-6)


def test_a_strided_transposed_convolution_stays_in_the_rest(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.Conv2d(6, 5, 3)).eval()
    graph, state = capture(model, (torch.zeros(1, 3, 8, 8),))
    export_onnx(graph, state, tmp_path / "n.onnx", batch=1)
    grids = layer_grids(recognize(import_onnx(tmp_path / "n.onnx")), 2)
    assert [grid.layer for grid in grids] == ["0", "2"]
    table = costs_table(
        grids, GPU, FLOAT32, None, flops_as_ms, whole_ms=1.0, source="a test", reporter=SilentReporter()
    )
    (tmp_path / "costs.json").write_text(json.dumps(table))
    assert set(load_costs(tmp_path / "costs.json", graph).layers) == {"0", "2"}


def test_removed_columns_never_cost_more_than_the_ordinary_kernel(small: tuple[Graph, Network]) -> None:
    def later_is_slower(bundle: Path) -> Sequence[float]:
        return [1.0 + number for number in range(len(read_bundle(bundle).plan.launches))]

    # Compacted kernels are measured after the ordinary ones of their layer.
    table = costs_table(
        layer_grids(small[1], 2),
        GPU,
        FLOAT32,
        None,
        later_is_slower,
        whole_ms=1.0,
        source="a test",
        reporter=SilentReporter(),
    )
    layer = table["layers"]["first"]
    assert layer["compact"]["cost"] == [[row[-1]] * len(layer["compact"]["columns"]) for row in layer["dense"]["cost"]]
    assert table["rest"] == 0.0


def test_a_network_without_convolutions_has_no_table() -> None:
    with pytest.raises(UserError, match="no convolution"):
        layer_grids(Network({}, (), (), ()), 3)


@pytest.mark.parametrize(("groups", "filters"), [(3, 48), (3, 60), (2, 12), (4, 48), (6, 18)])
def test_the_grid_of_a_grouped_convolution_has_as_many_filters_in_each_group(groups: int, filters: int) -> None:
    op = Conv2d(1, 12 * groups, 6, 6, filters, (3, 3), padding=(1, 1, 1, 1), groups=groups)
    tensors = {"x": Tensor("x", (1, 12 * groups, 6, 6)), "y": Tensor("y", (1, filters, 6, 6))}
    network = Network(tensors, (Node("a", op, ("x",), ("y",)),), (Port("x", "x"),), (Port("y", "y"),))
    (grid,) = layer_grids(network, 4)
    assert len(grid.filters) > 1
    assert grid.filters[-1] == filters
    assert all(count % groups == 0 for count in grid.filters)
