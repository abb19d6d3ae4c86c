"""Accuracy of a network that is compiled or about to be: the same test images through ONNX Runtime and a device."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from structadmm.errors import UserError
from structadmm.files import read_json
from structadmm.progress import Reporter

if TYPE_CHECKING:
    from device.runner_client import Runner
    from train.data import Dataset

_BLOCK_BYTES = 16 << 20
"""Of float32 images that go to a device at once: some 1300 of CIFAR's."""
_BLOCK_IMAGES = 500

MAX_POINTS_APART = 0.05
"""Training counts in its own precision, ONNX Runtime in float32: an image or two of ten thousand may fall otherwise."""

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What a network says about every test image.

    Attributes:
        by: what ran it.
        classes: int64 [N], the highest score of each image; the first of equal ones.
        labels: int64 [N], the right ones.
    """

    by: str
    classes: Labels
    labels: Labels

    @property
    def correct(self) -> int:
        """Images that are classified right."""
        return int((self.classes == self.labels).sum())

    @property
    def percent(self) -> float:
        """Top-1 accuracy."""
        return 100.0 * self.correct / len(self.labels)

    def differing(self, other: Answers) -> int:
        """Images that the two answer differently."""
        return int((self.classes != other.classes).sum())


def data_digest(data: Dataset) -> str:
    """SHA-256 of the test images and labels, as uint8 [M, C, H, W] and int64 [M]: what an accuracy is about."""
    digest = hashlib.sha256()
    for start in range(0, len(data.test_labels), _BLOCK_IMAGES):
        digest.update(data.test_images[start : start + _BLOCK_IMAGES].contiguous().numpy().tobytes())
    digest.update(data.test_labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def evaluate_onnx(path: Path, data: Dataset, reporter: Reporter) -> Answers:
    """Run the test images through ONNX Runtime.

    Raises:
        UserError: the file is no network for these images.
    """
    import onnxruntime
    import torch

    from export.onnx_export import OnnxNetwork
    from tvm_build.compile import network_inputs

    shapes = list(network_inputs(path).values())
    network = OnnxNetwork(path)
    batch = _check_shapes(str(path), shapes, data)
    classes = []
    with reporter.task("ONNX Runtime", total=len(data.test_labels)) as task:
        for images in _blocks(data, batch):
            outputs = network(torch.from_numpy(images))
            _check_outputs(str(path), len(outputs))
            scores = outputs[0].numpy()
            classes.append(_classes(scores, len(images), data, str(path)))
            task.advance(len(images))
    return Answers(f"ONNX Runtime {onnxruntime.__version__}", np.concatenate(classes), data.test_labels.numpy())


def evaluate_bundle(bundle: Path, data: Dataset, runner: Runner, reporter: Reporter) -> Answers:
    """Run the test images through a compiled bundle, one inference after the other.

    Args:
        bundle: a `.clbundle` directory.
        data: whose test images.
        runner: on the device.
        reporter: where progress is shown.

    Raises:
        UserError: the bundle is no network for these images, or the device fails.
    """
    manifest = read_json(bundle / "manifest.json", schema=1)
    try:
        inputs = [(tuple(map(int, entry["shape"])), str(entry["dtype"])) for entry in manifest["inputs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{bundle / 'manifest.json'} lacks {error}: compile the network again") from None
    batch = _check_shapes(str(bundle), [shape for shape, _ in inputs], data)
    dtype = inputs[0][1]
    if dtype not in ("float32", "float16"):
        raise UserError(f"{bundle} takes {dtype}, expected float32 or float16 images")
    classes = []
    with reporter.task(f"{bundle.name} on {runner.target.name}", total=len(data.test_labels)) as task:
        for images in _blocks(data, batch):
            missing = -len(images) % batch
            stacked = np.concatenate([images, images[:1].repeat(missing, axis=0)]) if missing else images
            outputs = runner.run(bundle, [stacked.astype(dtype, copy=False)], samples=len(stacked) // batch).outputs
            _check_outputs(str(bundle), len(outputs))
            classes.append(_classes(outputs[0][: len(images)], len(images), data, str(bundle)))
            task.advance(len(images))
    return Answers(f"{bundle.name} on {runner.target.name}", np.concatenate(classes), data.test_labels.numpy())


def evaluate(
    path: Path, data: Dataset, *, device: str, target: str | None, dtype: str | None, reporter: Reporter
) -> tuple[list[Answers], dict[str, Any]]:
    """An ONNX file through ONNX Runtime and, compiled, on a device; a bundle on a device.

    Args:
        path: `.onnx`, or a bundle's directory.
        data: whose test images.
        device: as `--device` names it.
        target: the GPU to compile an ONNX file for; None asks the device what it is, as `auto` does.
        dtype: of the compiled kernels; None is float32.
        reporter: where progress is shown.

    Returns:
        The answers, and what the device and the bundle were.

    Raises:
        UserError: the file is no network for these images, or the device is not there.
    """
    from device.runner_client import Runner
    from device.target import open_target
    from pipeline.gpu_choice import choose_gpu
    from tvm_build.compile import compile_onnx

    bundle = path if path.is_dir() else None
    if bundle is None and not path.is_file():
        raise UserError(f"{path} does not exist: give an .onnx file or the directory of a .clbundle")
    if bundle is not None:
        _check_bundle(bundle, {"--target": target, "--dtype": dtype})
    answers = [] if bundle else [evaluate_onnx(path, data, reporter)]
    opened = open_target(device, reporter)
    try:
        with tempfile.TemporaryDirectory(prefix="structadmm-evaluate-") as scratch:
            if bundle is None:
                gpu = choose_gpu(target or "auto", opened)
                bundle = Path(scratch) / f"{path.stem}.clbundle"
                compile_onnx(path, bundle, target=gpu, dtype=dtype or "float32", reporter=reporter)
            answers.append(evaluate_bundle(bundle, data, Runner(opened), reporter))
            manifest = read_json(bundle / "manifest.json", schema=1)
        told = {"device": opened.name, "kind": opened.kind, "target": manifest["target"], "dtype": manifest["dtype"]}
    finally:
        opened.close()
    return answers, told


def _check_bundle(bundle: Path, options: Mapping[str, str | None]) -> None:
    """It is one, and is not asked to be another: what it was compiled for is in it."""
    if not (bundle / "manifest.json").is_file():
        raise UserError(f"{bundle} is no bundle (it has no manifest.json): give an .onnx file or a .clbundle")
    given = [f"{name} {value}" for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{' '.join(given)}: {bundle} is compiled already; give its .onnx file to compile it otherwise")


def _check_shapes(what: str, shapes: list[tuple[int, ...]], data: Dataset) -> int:
    """The network's batch; it must take one array of such images."""
    if len(shapes) != 1 or len(shapes[0]) < 2 or shapes[0][1:] != data.image_shape:
        told = " and ".join(str(list(shape)) for shape in shapes) or "nothing"
        raise UserError(
            f"{what} takes {told}, the images of {data.name} are [N, {', '.join(map(str, data.image_shape))}]: "
            "choose the data set that the network was trained on, with --set train.data.kwargs.size=N its size"
        )
    return shapes[0][0]


def _check_outputs(what: str, count: int) -> None:
    if count != 1:
        raise UserError(f"{what} has {count} outputs, and which of them holds the classes is not said: expected one")


def _blocks(data: Dataset, batch: int) -> Iterator[NDArray[np.float32]]:
    """The normalised test images in blocks of whole batches, the last one as it comes."""
    channels, height, width = data.image_shape
    images = min(_BLOCK_IMAGES, max(1, _BLOCK_BYTES // (4 * channels * height * width)))
    images = max(1, images // batch) * batch
    for start in range(0, len(data.test_labels), images):
        yield data.normalised(data.test_images[start : start + images]).numpy()


def _classes(scores: NDArray[Any], images: int, data: Dataset, what: str) -> Labels:
    if scores.shape != (images, len(data.classes)):
        raise UserError(
            f"{what} gives {list(scores.shape)} for {images} images, expected one score for each of the "
            f"{len(data.classes)} classes of {data.name}"
        )
    if not np.isfinite(scores).all():
        raise UserError(f"{what} gives scores that are not finite: the network or the device is broken")
    classes: Labels = scores.argmax(axis=1).astype(np.int64)
    return classes
