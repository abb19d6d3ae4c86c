from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.compile.onnx_models import conv, save, weights
from tests.unit.tvm_build.fake_measurer import FACTS
from tvm_build.fuse import fuse
from tvm_build.gpu import gpu_by_name
from tvm_build.import_onnx import import_onnx
from tvm_build.kernels import default_schedule
from tvm_build.network import Network, Node, Port, Tensor, zeros
from tvm_build.ops import Conv2d
from tvm_build.precision import FLOAT32
from tvm_build.recognize import recognize
from tvm_build.tuning.database import TrialRecord
from tvm_build.tuning.measurer import CandidateTimes
from tvm_build.tuning.schedules import describe_schedule
from tvm_build.tuning.task_key import describe_operator
from tvm_build.tuning.tasks import extract_tasks
from tvm_build.tuning.tuned import TunedSchedules
from tvm_build.winograd import use_winograd

GPU = gpu_by_name("adreno-640")


@pytest.fixture
def half_empty(tmp_path: Path) -> Network:
    """One convolution with zeros in every second column."""
    weight = weights(8, 8, 3, 3)
    weight.reshape(8, -1)[:, ::2] = 0
    constants = {"a.weight": weight}
    path = save(tmp_path / "a.onnx", [conv("a", "x", "y", pads=[1] * 4)], {"x": [1, 8, 8, 8]}, ["y"], constants)
    return recognize(import_onnx(path))


def measured(ops: Sequence[Conv2d], times_ms: Sequence[float]) -> TunedSchedules:
    return TunedSchedules(
        (
            TrialRecord(
                device=FACTS,
                target=GPU.name,
                dtype="float32",
                task=describe_operator(op),
                schedule=describe_schedule(default_schedule(op, GPU)),
                status="ok",
                times=CandidateTimes(min_ms=ms, median_ms=ms, p90_ms=ms),
            )
            for op, ms in zip(ops, times_ms, strict=True)
        ),
        "db.jsonl",
        GPU,
        FLOAT32,
    )


def only_conv(network: Network) -> Conv2d:
    (op,) = (node.op for node in network.nodes if isinstance(node.op, Conv2d))
    return op


@pytest.mark.parametrize("dense_is_faster", [True, False])
def test_whether_zero_columns_are_left_out_follows_what_was_measured(
    half_empty: Network, dense_is_faster: bool
) -> None:
    tasks = extract_tasks([fuse(half_empty, GPU)], GPU, FLOAT32)
    dense, sparse = sorted((task.op for task in tasks), key=lambda op: getattr(op, "columns", None) is not None)
    assert isinstance(dense, Conv2d)
    assert isinstance(sparse, Conv2d)
    assert tasks[0].group == tasks[1].group
    assert sparse == replace(dense, columns=tuple(np.arange(1, 72, 2)))
    tuned = measured([dense, sparse], [1.0, 2.0] if dense_is_faster else [2.0, 1.0])
    assert (only_conv(fuse(half_empty, GPU, FLOAT32, tuned)).columns is None) == dense_is_faster


def test_one_measurement_alone_decides_nothing(half_empty: Network) -> None:
    untuned = only_conv(fuse(half_empty, GPU))
    other = replace(untuned, columns=None) if untuned.columns is not None else untuned
    assert only_conv(fuse(half_empty, GPU, FLOAT32, measured([other], [1e-6]))) == untuned


def test_a_layer_that_was_measured_is_not_replaced_by_a_predicted_winograd_form() -> None:
    large = Conv2d(1, 128, 56, 56, 128, (3, 3), padding=(1, 1, 1, 1))
    other = replace(large, activation="relu")
    shape = (1, 128, 56, 56)
    constants = {"weight": weights(128, 128, 3, 3), "bias": zeros(128)}
    network = Network(
        {name: Tensor(name, shape) for name in "xyz"},
        (Node("a", large, ("x",), ("y",), constants), Node("b", other, ("y",), ("z",), constants)),
        (Port("x", "x"),),
        (Port("z", "z"),),
    )
    layers = [node.layer for node in use_winograd(network, GPU).nodes]
    assert layers == ["a:tiles", "a", "a:sums", "b:tiles", "b", "b:sums"]
    tuned = measured([large], [1.0])
    assert [node.layer for node in use_winograd(network, GPU, FLOAT32, tuned).nodes] == ["a", "b:tiles", "b", "b:sums"]
