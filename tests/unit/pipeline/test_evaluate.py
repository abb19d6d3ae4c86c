from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cli import run_command_line
from pipeline.evaluate import Answers, data_digest, evaluate_bundle
from pipeline.gpu_choice import choose_gpu
from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from train.config import DataConfig
from train.data import Dataset


def images(count: int) -> Dataset:
    """Images whose brightest pixel says their class, the label being right for all but every fifth."""
    classes = torch.arange(count) % 4
    pixels = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    pixels.view(count, 4)[torch.arange(count), classes] = 255
    labels = torch.where(torch.arange(count) % 5 == 0, (classes + 1) % 4, classes)
    return Dataset("toy", pixels, labels, pixels, labels, tuple("abcd"), (0.5,), (0.5,))


class Brightest:
    """A runner whose network gives each pixel's value as the score of a class; it checks how it is asked."""

    target = SimpleNamespace(name="made up")

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.images = 0

    def run(self, bundle: Path, inputs: list[np.ndarray[Any, Any]], *, samples: int) -> Any:
        assert bundle.is_dir()
        [stack] = inputs
        assert stack.dtype == np.float32
        assert len(stack) == samples * self.batch
        self.images += len(stack)
        return SimpleNamespace(outputs=(stack.reshape(len(stack), 4),))


def bundle(tmp_path: Path, shape: list[int], dtype: str = "float32") -> Path:
    path = tmp_path / "net.clbundle"
    path.mkdir()
    manifest = {"schema": 1, "inputs": [{"name": "x", "shape": shape, "dtype": dtype}]}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize(("batch", "count"), [(1, 1), (1, 1203), (7, 1203), (64, 3)])
def test_every_image_is_answered_once_whatever_the_batch_and_the_remainder(
    tmp_path: Path, batch: int, count: int
) -> None:
    data, runner = images(count), Brightest(batch)
    answers = evaluate_bundle(bundle(tmp_path, [batch, 1, 2, 2]), data, runner, SilentReporter())  # type: ignore[arg-type]
    assert len(answers.classes) == count
    assert answers.correct == count - len(range(0, count, 5))
    assert 0 <= runner.images - count < batch


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ([1, 3, 2, 2], "float32", r"takes \[1, 3, 2, 2\], the images of toy are \[N, 1, 2, 2\]"),
        ([4], "float32", r"takes \[4\]"),
        ([1, 1, 2, 2], "int32", "takes int32"),
    ],
)
def test_a_network_for_other_images_is_refused_before_it_runs(
    tmp_path: Path, shape: list[int], dtype: str, said: str
) -> None:
    runner = Brightest(1)
    with pytest.raises(UserError, match=said):
        evaluate_bundle(bundle(tmp_path, shape, dtype), images(3), runner, SilentReporter())  # type: ignore[arg-type]
    assert runner.images == 0


def test_the_digest_changes_with_a_pixel_and_with_a_label() -> None:
    first, pixel, label = images(9), images(9), images(9)
    pixel.test_images[8, 0, 1, 1] += 1
    label.test_labels[8] = 3 - label.test_labels[8]
    assert data_digest(first) == data_digest(images(9))
    assert len({data_digest(first), data_digest(pixel), data_digest(label)}) == 3


def test_answers_are_counted_and_compared() -> None:
    labels = np.array([0, 1, 2, 3])
    one, other = (Answers("x", np.array(classes), labels) for classes in ([0, 1, 2, 2], [0, 1, 1, 3]))
    assert (one.correct, one.percent, one.differing(other)) == (3, 75.0, 2)


@pytest.mark.parametrize(
    ("kind", "gpu", "expected"),
    [
        ("host", "Adreno640v2", "opencl-cpu"),
        ("phone", "Adreno640v2", "adreno-640"),
        ("phone", "Adreno (TM) 730", "adreno-730"),
        ("phone", "Adreno642L", "adreno-640"),
        ("phone", "Adreno 999", "adreno-830"),
        ("phone", "Adreno 418", "adreno-540"),
    ],
)
def test_a_network_is_compiled_for_the_gpu_that_the_device_says_it_has(kind: str, gpu: str, expected: str) -> None:
    target: Any = SimpleNamespace(name="adb:x", kind=kind, facts=lambda: {"gpu": gpu})
    assert choose_gpu("auto", target) == expected
    assert choose_gpu("adreno-650", target) == "adreno-650"


@pytest.mark.parametrize("facts", [{}, {"gpu": "Mali-G78"}, {"gpu": "Adreno"}])
def test_a_gpu_that_is_no_adreno_must_be_named(facts: dict[str, str]) -> None:
    target: Any = SimpleNamespace(name="adb:x", kind="phone", facts=lambda: facts)
    with pytest.raises(UserError, match="--target"):
        choose_gpu("auto", target)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "absent.onnx", "--data", "digits"], "absent.onnx does not exist"),
        (["evaluate", ".", "--data", "digits"], ". is no bundle (it has no manifest.json)"),
        (["evaluate", "x.onnx"], "Missing option '--data'"),
        (["evaluate", "x.onnx", "--data", "digit"], "unknown data 'digit': use digits"),
        (["deploy"], "needs the NAME"),
        (["deploy", "no-such-net"], "no reference network 'no-such-net'"),
        (["deploy", "no-such-net", "--dtype", "int8"], "int8"),
    ],
)
def test_wrong_usage_ends_in_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run_command_line(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_options_of_the_data_reach_it_and_others_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[DataConfig] = []

    def load(config: DataConfig) -> Dataset:
        asked.append(config)
        return images(3)

    monkeypatch.setattr("train.data.load_dataset", load)
    command = ["evaluate", str(tmp_path / "absent.onnx"), "--data", "imagefolder", "--data-root", "birds"]
    assert run_command_line([*command, "--set", "train.data.kwargs.size=48"]) == 2
    assert "absent.onnx does not exist" in capsys.readouterr().err
    assert (asked[0].name, asked[0].root, asked[0].kwargs) == ("imagefolder", Path("birds"), {"size": 48})
    for option, said in (
        ("train.seed=3", "only train.data can be set here"),
        ("data.size=3", "only train.data can be set here"),
        ("train.data.sise=3", "train.data: the top level has no key 'sise'"),
    ):
        assert run_command_line([*command, "--set", option]) == 2
        assert said in capsys.readouterr().err
