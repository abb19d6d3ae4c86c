from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.compile.onnx_models import conv, save, weights
from tests.unit.tvm_build.fake_measurer import FACTS
from tvm_build.fuse import fuse
from tvm_build.gpu import Gpu, gpu_by_name, with_memory
from tvm_build.import_onnx import import_onnx
from tvm_build.kernels import Schedule, candidates, default_schedule
from tvm_build.kernels.conv_tiling import ConvSchedule
from tvm_build.layout import assign_layouts
from tvm_build.network import Network, Node, Port, Tensor, zeros
from tvm_build.ops import Conv2d, Operator, WinogradInput, WinogradOutput, with_images
from tvm_build.precision import FLOAT32
from tvm_build.recognize import recognize
from tvm_build.storage import assign_memory
from tvm_build.tuning.database import TrialRecord
from tvm_build.tuning.forms import Forms
from tvm_build.tuning.measurer import CandidateTimes
from tvm_build.tuning.schedules import describe_schedule
from tvm_build.tuning.task_key import describe_operator
from tvm_build.tuning.tasks import extract_tasks
from tvm_build.tuning.tuned import TunedSchedules
from tvm_build.winograd import parts, split_node, use_winograd

GPU = gpu_by_name("adreno-640")


@pytest.fixture
def half_empty(tmp_path: Path) -> Network:
    """One convolution with zeros in every second column."""
    weight = weights(8, 8, 3, 3)
    weight.reshape(8, -1)[:, ::2] = 0
    constants = {"a.weight": weight}
    path = save(tmp_path / "a.onnx", [conv("a", "x", "y", pads=[1] * 4)], {"x": [1, 8, 8, 8]}, ["y"], constants)
    return recognize(import_onnx(path))


def measured(
    ops: Sequence[Operator], times_ms: Sequence[float], schedules: Sequence[Schedule] = (), gpu: Gpu = GPU
) -> TunedSchedules:
    """A database of one trial of each operator, by default of its untuned schedule."""
    return TunedSchedules(
        (
            TrialRecord(
                device=FACTS,
                target=GPU.name,
                dtype="float32",
                task=describe_operator(op),
                schedule=describe_schedule(schedule),
                status="ok",
                times=CandidateTimes(min_ms=ms, median_ms=ms, p90_ms=ms),
            )
            for op, ms, schedule in zip(
                ops, times_ms, schedules or [default_schedule(op, GPU) for op in ops], strict=True
            )
        ),
        "db.jsonl",
        gpu,
        FLOAT32,
    )


def only_conv(network: Network) -> Conv2d:
    (op,) = (node.op for node in network.nodes if isinstance(node.op, Conv2d))
    return op


@pytest.mark.parametrize("dense_is_faster", [True, False])
def test_whether_zero_columns_are_left_out_follows_what_was_measured(
    half_empty: Network, dense_is_faster: bool
) -> None:
    tasks = [t for t in extract_tasks([fuse(half_empty, GPU)], GPU, FLOAT32) if "Winograd" not in t.forms]
    dense, sparse = sorted((task.op for task in tasks), key=lambda op: getattr(op, "columns", None) is not None)
    assert isinstance(dense, Conv2d)
    assert isinstance(sparse, Conv2d)
    assert dense.columns is None
    assert {use.group for task in tasks for use in task.uses} == {tasks[0].uses[0].group}
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


@pytest.mark.parametrize("target", ["adreno-640", "opencl-cpu"])
def test_the_form_of_a_layer_follows_what_was_measured_of_all_its_launches(target: str) -> None:
    gpu = gpu_by_name(target)
    op = Conv2d(1, 16, 8, 8, 16, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    constants = {"weight": weights(16, 16, 3, 3), "bias": zeros(16)}
    shape = (1, 16, 8, 8)
    network = Network(
        {name: Tensor(name, shape) for name in "xy"},
        (Node("a", op, ("x",), ("y",), constants),),
        (Port("x", "x"),),
        (Port("y", "y"),),
    )

    def launches(ops: Sequence[Operator], times_ms: Sequence[float]) -> int:
        return len(use_winograd(network, gpu, FLOAT32, measured(ops, times_ms)).nodes)

    forms = [parts(op, tile).launches for tile in (2, 4)]
    everything = [op, *forms[0], *forms[1]]
    assert launches([op], [9.0]) == 1
    assert launches(everything, [9.0, 1, 2, 3, 2, 3, 2]) == 3
    assert launches(everything, [5.0, 1, 2, 3, 2, 3, 2]) == 1
    # One that is not measured to its end is none, and what lies between launches counts.
    assert launches([op, *forms[0][:2]], [9.0, 1, 1]) == 1
    assert launches([op, *forms[0]], [6 + 1.9 * gpu.launch_us / 1e3, 1, 2, 3]) == 1
    chosen = use_winograd(network, gpu, FLOAT32, measured(everything, [9.0, 1, 2, 3, 2, 1, 2])).nodes[0].op
    assert isinstance(chosen, WinogradInput)
    assert chosen.tile == 4


def test_a_shortcut_is_a_launch_of_its_own_where_its_layer_is_winograds() -> None:
    shortcut = Conv2d(1, 8, 16, 16, 16, (1, 1), stride=(2, 2))
    op = Conv2d(1, 16, 8, 8, 16, (3, 3), padding=(1, 1, 1, 1), activation="relu", shortcut=shortcut)
    constants = {"weight": weights(16, 16, 3, 3), "bias": zeros(16), "shortcut_weight": weights(16, 8, 1, 1)}
    nodes, tensors = split_node(Node("a", op, ("x", "s"), ("y",), constants), 2)
    forward, product, side, back = nodes
    assert (forward.inputs, side.inputs) == (("x",), ("s",))
    assert side.op == shortcut
    assert back.inputs == (product.output, side.output)
    assert isinstance(back.op, WinogradOutput)
    assert back.op.has_residual
    assert {tensor.name for tensor in tensors} == {forward.output, product.output, side.output}


def test_layers_that_differ_after_the_sum_share_a_transform_and_a_product() -> None:
    op = Conv2d(1, 16, 8, 8, 16, (3, 3), padding=(1, 1, 1, 1))
    constants = {"weight": weights(16, 16, 3, 3), "bias": zeros(16)}
    network = Network(
        {name: Tensor(name, (1, 16, 8, 8)) for name in "xyz"},
        (
            Node("a", replace(op, activation="relu"), ("x",), ("y",), constants),
            Node("b", replace(op, has_residual=True), ("y", "x"), ("z",), constants),
        ),
        (Port("x", "x"),),
        (Port("z", "z"),),
    )
    tasks = extract_tasks([network], GPU, FLOAT32)
    layers = {type(task.op).__name__ + task.forms: set(task.layers) for task in tasks if "4" in task.forms}
    assert layers["WinogradInputWinograd F(4, 3)"] == layers["Conv2dWinograd F(4, 3)"] == {"a", "b"}
    outputs = [task.layers for task in tasks if isinstance(task.op, WinogradOutput) and task.op.tile == 4]
    assert sorted(outputs) == [("a",), ("b",)]
    forms = Forms(tasks, GPU)
    times_ms = dict.fromkeys((task.key for task in tasks), 1.0)
    extra_ms = 2 * GPU.launch_us / 1e3
    for group in forms.groups:
        assert forms.times_ms(group, times_ms) == {
            "direct": 1.0,
            "Winograd F(2, 3)": pytest.approx(3 + extra_ms),
            "Winograd F(4, 3)": pytest.approx(3 + extra_ms),
        }
    assert forms.total_ms(times_ms) == forms.untuned_ms(times_ms) == 2.0
    assert forms.total_ms({}) is None


PLAIN = Conv2d(1, 64, 16, 16, 64, (3, 3), padding=(1, 1, 1, 1), activation="relu")
WITH_SHORTCUT = replace(PLAIN, shortcut=Conv2d(1, 32, 32, 32, 64, (1, 1), stride=(2, 2)))


@pytest.mark.parametrize("op", [PLAIN, WITH_SHORTCUT], ids=["plain", "with a shortcut"])
@pytest.mark.parametrize(("images", "views"), [((), ()), ((), ("input0",)), (("input0", "output"), ())])
def test_a_layer_was_measured_wherever_its_tensors_lay(
    op: Conv2d, images: tuple[str, ...], views: tuple[str, ...]
) -> None:
    if op.shortcut is not None:
        images, views = (("input1", *side) if side else () for side in (images, views))
    tuned = measured([with_images(op, images, views)], [2.0])
    assert tuned.measured_us([op]) == {op: 2000.0}
    found = tuned.find(op)
    assert found is not None
    assert found.schedule in candidates(op, GPU)
    assert found.measured_us == 2000.0


def test_what_was_measured_right_here_goes_before_what_was_measured_elsewhere() -> None:
    here, elsewhere = default_schedule(PLAIN, GPU), candidates(PLAIN, GPU)[1]
    assert here != elsewhere
    other = with_images(PLAIN, ["input0", "output"])
    tuned = measured([PLAIN, other], [3.0, 1.0], [here, elsewhere])
    found = tuned.find(PLAIN)
    assert found is not None
    assert (found.schedule, found.measured_us) == (here, 3000.0)
    found = measured([other], [1.0], [elsewhere]).find(PLAIN)
    assert found is not None
    assert (found.schedule, found.measured_us) == (elsewhere, 1000.0)


def test_a_schedule_for_other_tensors_is_not_taken_where_it_is_none() -> None:
    """Single floats are read from a buffer alone."""
    op = replace(PLAIN, columns=tuple(range(0, 9 * 64, 2)))
    scalars = next(s for s in candidates(op, GPU) if isinstance(s, ConvSchedule) and s.gather == "lanes")
    tuned = measured([op], [1.0], [scalars])
    assert tuned.find(op) is not None
    assert tuned.find(with_images(op, ["input0", "output"])) is None


@pytest.mark.parametrize("memory", ["buffer", "image"])
def test_a_choice_of_memory_holds_against_what_was_measured(memory: str) -> None:
    gpu = with_memory(GPU, memory)
    (right,) = {schedule.weights for schedule in candidates(PLAIN, gpu) if isinstance(schedule, ConvSchedule)}
    schedules = {s.weights: s for s in reversed(candidates(PLAIN, GPU)) if isinstance(s, ConvSchedule)}
    (wrong,) = (weights for weights in schedules if weights != right)
    assert measured([PLAIN], [1.0], [schedules[wrong]], gpu).find(PLAIN) is None
    found = measured([PLAIN] * 2, [1.0, 5.0], [schedules[wrong], schedules[right]], gpu).find(PLAIN)
    assert found is not None
    assert (found.schedule, found.measured_us) == (schedules[right], 5000.0)


def test_every_launch_of_a_measured_winograd_form_gets_its_measured_schedule() -> None:
    """Where the tensors in between lie is chosen for the network as a whole, after the tasks were."""
    op = replace(PLAIN, activation="relu")
    constants = {"weight": weights(64, 64, 3, 3), "bias": zeros(64)}
    names = "wxyz"
    network = Network(
        {name: Tensor(name, (1, 64, 16, 16)) for name in names},
        tuple(Node(f"{a}{b}", op, (a,), (b,), constants) for a, b in pairwise(names)),
        (Port("w", "w"),),
        (Port("z", "z"),),
    )
    tasks = extract_tasks([assign_memory(assign_layouts(network), GPU)], GPU, FLOAT32)
    tuned = measured([task.op for task in tasks], [1.0 if "F(4" in task.forms else 9.0 for task in tasks])
    placed = assign_memory(assign_layouts(use_winograd(network, GPU, FLOAT32, tuned)), GPU)
    ours = [node for node in placed.nodes if isinstance(node.op, Conv2d | WinogradInput | WinogradOutput)]
    assert len(ours) == 9
    assert any(node.op.views for node in ours)
    assert all(tuned.find(node.op) is not None for node in ours)
