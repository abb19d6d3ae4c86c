from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from export.foreign import build_network, example_inputs, read_weights
from export.onnx_export import OnnxNetwork
from pipeline.cli import run_command_line
from structadmm.errors import UserError
from structadmm.graph.save import load_network
from tests.architectures import INPUT_SHAPE, build

ENTRY = "tests.architectures:resnet18"


def test_weights_are_found_in_every_usual_file(tmp_path: Path) -> None:
    state = build("resnet18").state_dict()
    safetensors.torch.save_file(state, tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"lr": 0.1}}, tmp_path / "checkpoint.pth")
    for path in tmp_path.iterdir():
        arrived = build_network(ENTRY, path).state_dict()
        assert all(torch.equal(arrived[name], tensor) for name, tensor in state.items())


class Unsafe:
    """An object whose unpickling writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


def test_a_file_that_would_run_code_is_refused_in_one_line_and_runs_nothing(tmp_path: Path) -> None:
    torch.save({"weight": Unsafe(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt holds more than tensors") as error:
        read_weights(tmp_path / "evil.pt")
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


def test_files_that_hold_no_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    torch.save(build("vgg").state_dict(), tmp_path / "vgg.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "vgg.pt").read_bytes()[:2000])
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "weights.h5").write_text("weights")
    for path in (*tmp_path.iterdir(), tmp_path / "absent.pt"):
        with pytest.raises(UserError, match=path.name) as error:
            build_network(ENTRY, path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", ["", "1,3,x", "0,3,8,8", "1,-3,8,8", "1,3,100000,100000", f"{10**20},1,8,8"])
def test_a_shape_that_is_none_is_refused(shape: str) -> None:
    with pytest.raises(UserError, match="--shape"):
        example_inputs(["1,3,8,8", shape])


def test_anybodys_network_is_exported_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("resnet18")
    with torch.no_grad():
        for tensor in (model[1].conv1.weight, model[1].bn1.weight, model[1].bn1.bias):
            tensor[:3] = 0
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    shape = ",".join(map(str, INPUT_SHAPE))
    arguments = ["export", ENTRY, "--weights", str(tmp_path / "mine.pt"), "--shape", shape]
    assert run_command_line([*arguments, "--out", str(tmp_path / "out"), "--json", "--set", "export.batch=2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["removed"] == {"1.conv1": [0, 1, 2]}
    inputs = torch.randn(2, *INPUT_SHAPE[1:])
    # The same non-zero terms in float32, in another order.
    assert torch.allclose(load_network(tmp_path / "out" / "shrunk")(inputs), model(inputs), atol=1e-5)
    assert run_command_line(["inspect", ENTRY, "--weights", str(tmp_path / "mine.pt"), "--shape", shape]) == 0
    layers = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1.conv1", "conv", "8", "->", "5", "3", "8", "72"] in layers
    assert ["1.conv2", "conv", "8", "8", "->", "5", "72"] in layers


def test_a_network_of_two_inputs_in_the_current_directory_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_inputs_of_mine.py").write_text(
        "from torch import nn\n"
        "class Sum(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)\n"
        "    def forward(self, x, v):\n"
        "        return self.a(x).mean((2, 3)) + self.b(v)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    command = ["export", "two_inputs_of_mine:Sum", "--out", "o", "--shape", "1,3,8,8"]
    assert run_command_line(command) == 2
    assert "'v'; give an example, on the command line a --shape, for every input" in capsys.readouterr().err
    assert run_command_line([*command, "--shape", "1,5"]) == 0
    network = load_network(tmp_path / "o" / "shrunk")
    assert network(torch.zeros(2, 3, 8, 8), torch.zeros(2, 5)).shape == (2, 4)


def divided_by_three() -> nn.Module:
    """What ONNX cannot say, which shows after the shrunk network is written."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2, divisor_override=3))


def test_an_export_that_fails_leaves_the_one_before_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    shape = ",".join(map(str, INPUT_SHAPE))
    assert run_command_line(["export", ENTRY, "--out", str(out), "--shape", shape]) == 0
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    failing = ["export", f"{__name__}:divided_by_three", "--out", str(out), "--shape", "1,1,8,8"]
    assert run_command_line(failing) == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert run_command_line(["export", ENTRY, "--out", str(out), "--shape", shape]) == 0
    assert {path.name for path in out.iterdir()} == before.keys()
    capsys.readouterr()
    (tmp_path / "file").touch()
    assert run_command_line(["export", ENTRY, "--out", str(tmp_path / "file"), "--shape", shape]) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err


def test_the_batch_of_the_shape_is_the_batch_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", ENTRY, "--shape", "4," + ",".join(map(str, INPUT_SHAPE[1:])), "--out"]
    assert run_command_line([*command, str(tmp_path / "four")]) == 0
    assert "four: batch 4, " in capsys.readouterr().out
    assert OnnxNetwork(onnx.load(tmp_path / "four" / "pruned.onnx"))(torch.zeros(4, *INPUT_SHAPE[1:]))[0].shape[0] == 4
    assert run_command_line([*command, str(tmp_path / "two"), "--set", "export.batch=2"]) == 0
    assert "two: batch 2, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["export", ENTRY], "needs --out"),
        (["export", "run", "--weights", "x.pt"], "needs --out"),
        (["export", ENTRY, "--out", "o", "--force"], "leave"),
        (["export", ENTRY, "--out", "o", "--shape", "1,3,16,16", "--set", "train.seed=1"], "section export only"),
        (["export", ENTRY, "--out", "o", "--shape", "1,3,16,16", "--set", "export.batches=1"], "did you mean 'batch'"),
        (["export", "tests.architectures:nothing", "--out", "o"], "no callable 'nothing'"),
        (["export", f"{__name__}:divided_by_three", "--out", "o", "--shape", "1,1,8,8"], "a divisor of its own"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command_line(arguments) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()
