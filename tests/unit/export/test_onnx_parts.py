"""ONNX files with weights beside them: the same network, in files below a size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from export.onnx_export import OnnxNetwork, export_onnx, read_onnx
from export.onnx_parts import write_in_parts
from structadmm.errors import UserError
from structadmm.graph import capture
from tvm_build.import_onnx import load_onnx


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 30, 3), nn.ReLU(), nn.Conv2d(30, 40, 3)).eval()
    export_onnx(*capture(model, (torch.zeros(1, 3, 9, 9),)), tmp_path / "whole.onnx")
    return tmp_path / "whole.onnx"


@pytest.mark.parametrize(("limit", "files"), [(1_000_000, 0), (50_000, 2), (91_500, 1)])
def test_a_network_in_parts_is_the_whole_one(whole: Path, tmp_path: Path, limit: int, files: int) -> None:
    parts = write_in_parts(read_onnx(whole), tmp_path / "parts" / "net.onnx", limit)
    assert [path.name for path in parts] == [f"net.weights-{number}.bin" for number in range(files)]
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"net.onnx", *(path.name for path in parts)}
    assert all(path.stat().st_size < limit for path in (tmp_path / "parts").iterdir())
    assert read_onnx(tmp_path / "parts" / "net.onnx") == read_onnx(whole)
    read, expected = (load_onnx(path).graph for path in (tmp_path / "parts" / "net.onnx", whole))
    assert read.node == expected.node
    for one, other in zip(read.initializer, expected.initializer, strict=True):
        assert (one.name, one.dims, one.raw_data) == (other.name, other.dims, other.raw_data)
    images = torch.randn(2, 3, 9, 9)
    assert torch.equal(OnnxNetwork(whole)(images)[0], OnnxNetwork(tmp_path / "parts" / "net.onnx")(images)[0])


def test_a_weight_above_the_limit_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'2\.weight' takes 43200 bytes, a file takes less than 40000"):
        write_in_parts(read_onnx(whole), tmp_path / "parts" / "net.onnx", 40_000)
    assert not (tmp_path / "parts").exists()
