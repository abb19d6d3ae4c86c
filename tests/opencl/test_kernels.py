"""Every kernel on real OpenCL devices against float64, with all of its schedules, for random shapes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device.errors import DeviceError
from device.local_target import LocalTarget, find_local_devices
from device.runner_client import Runner
from tests.kernel_references import ACTIVATIONS, make_case
from tvm_build.gpu import gpu_by_name, with_memory
from tvm_build.kernel_bundle import write_kernel_bundle
from tvm_build.kernels import candidates
from tvm_build.kernels.dense import DenseSchedule
from tvm_build.kernels.winograd import TransformSchedule
from tvm_build.ops import (
    ConcatChannels,
    Conv2d,
    Dense,
    Elementwise,
    GlobalAverage,
    Interleave,
    Operator,
    Pack,
    Pool2d,
    Unpack,
    WinogradOutput,
    with_images,
)
from tvm_build.precision import FLOAT32, PRECISIONS, Precision
from tvm_build.winograd import parts as winograd_parts

# float32 sums of up to a few thousand products of unit variance, in any order, stay within 1e-5 of float64 relative to
# the largest value; exp on a GPU may err by 16 units in the last place, so ten times that is allowed.
# Half holds 11 bits. Inputs and weights are rounded to it, which sums average out to about 1e-3; sums of hundreds of
# products in half lose a few times that.
RELATIVE_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "float16_float32": 3e-3}
TARGETS = ("opencl-cpu", "adreno-640")
# The runner's limit is 64 outputs.
CASES_PER_BUNDLE = 60
# For each device and target; a driver takes up to half a second to compile one.
RANDOM_CASES = int(os.environ.get("STRUCTADMM_RANDOM_KERNELS", "20"))


def _drivers() -> list[str]:
    names = [device.driver.name for device in find_local_devices().devices]
    assert names, "no OpenCL device: install the project's dependencies (Intel's runtime) or PoCL"
    return names


@pytest.fixture(scope="module", params=_drivers())
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    target = LocalTarget(request.param)
    yield Runner(target, use_program_cache=False)
    target.close()


def check(
    runner: Runner,
    path: Path,
    cases: Sequence[tuple[Operator, Any]],
    target: str,
    precision: Precision = FLOAT32,
) -> None:
    """Run (operator, schedule) pairs and compare each with float64."""
    for start in range(0, len(cases), CASES_PER_BUNDLE):
        part = cases[start : start + CASES_PER_BUNDLE]
        made = [make_case(op, seed=start + number, schedule=schedule) for number, (op, schedule) in enumerate(part)]
        bundle = path / "kernels.clbundle"
        write_kernel_bundle(bundle, [case for case, _, _ in made], gpu_by_name(target), precision)
        outputs = runner.run(bundle, [np.zeros(4, np.float32)]).outputs
        for (case, expected, layout), output in zip(made, outputs, strict=True):
            assert np.isfinite(output).all(), case.op
            error = np.abs(layout(output) - expected).max() / max(np.abs(expected).max(), 1e-3)
            assert error <= RELATIVE_TOLERANCE[precision.name], (
                f"relative error {error:.1e} of {case.op} with {case.schedule}"
            )


@st.composite
def convolutions(draw: st.DrawFn) -> Conv2d:
    """Small ones of every kind: odd channel counts, unequal paddings, strides, dilations, groups, column masks."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (1, 3), (2, 2), (5, 5), (7, 7)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 2)])) if max(kernel) <= 3 else (1, 1)
    kind = draw(st.sampled_from(["dense", "dense", "grouped", "depthwise", "columns", "blocks"]))
    columns = None
    groups = 1
    if kind == "depthwise":
        groups = in_channels = out_channels = draw(st.integers(2, 19))
    elif kind == "grouped":
        groups = draw(st.sampled_from([2, 3, 4, 8]))
        in_channels = groups * draw(st.integers(1, 6))
        out_channels = groups * draw(st.integers(1, 6))
    else:
        in_channels, out_channels = draw(st.integers(1, 26)), draw(st.integers(1, 40))
    taps = kernel[0] * kernel[1]
    if kind == "columns":
        chosen = draw(st.sets(st.integers(0, in_channels * taps - 1), min_size=1, max_size=60))
        columns = tuple(sorted(chosen))
    elif kind == "blocks":
        all_blocks = [(b, t) for b in range(-(-in_channels // 4)) for t in range(taps)]
        picked = draw(st.sets(st.sampled_from(all_blocks), min_size=1, max_size=20))
        columns = tuple(sorted(c * taps + t for b, t in picked for c in range(b * 4, min(b * 4 + 4, in_channels))))
    padding = draw(st.tuples(*[st.integers(0, kernel[i % 2] // 2 * dilation[i % 2]) for i in range(4)]))
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
    return Conv2d(
        batch=draw(st.integers(1, 2)),
        in_channels=in_channels,
        in_height=draw(st.integers(spans[0], spans[0] + 9)),
        in_width=draw(st.integers(spans[1], spans[1] + 12)),
        out_channels=out_channels,
        kernel=kernel,
        stride=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 1)])),
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=draw(st.sampled_from(["none", "relu", "relu6"])),
        has_residual=draw(st.booleans()),
        columns=columns,
    )


@pytest.mark.parametrize("target", TARGETS)
def test_random_convolutions_match_float64_with_random_schedules(runner: Runner, target: str, tmp_path: Path) -> None:
    cases: list[tuple[Operator, Any]] = []

    # Collected first and run together: starting a process for each would take most of the time.
    @settings(
        max_examples=RANDOM_CASES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        convolutions(),
        st.sets(st.sampled_from(["input0", "output", "residual"])),
        st.booleans(),
        st.integers(0, 10_000),
    )
    def collect(op: Conv2d, images: set[str], as_images: bool, choice: int) -> None:
        # On a CPU, images must be asked for; on an Adreno, weights in images are among the candidates.
        asked = target == "opencl-cpu" and (images or as_images)
        gpu = with_memory(gpu_by_name(target), "image" if asked else "auto")
        here = set(c4_roles(op)) & images
        stored = with_images(op, here, set(c4_roles(op)) - here - {"output"} if as_images else ())
        schedules = candidates(stored, gpu)
        cases.append((stored, schedules[choice % len(schedules)]))

    collect()
    assert len(cases) >= RANDOM_CASES // 2
    check(runner, tmp_path, cases, target)


@pytest.mark.parametrize("target", TARGETS)
def test_candidates_of_a_split_and_a_sparse_layer_agree_with_float64(
    runner: Runner, target: str, tmp_path: Path
) -> None:
    gpu = gpu_by_name(target)
    small = Conv2d(1, 20, 4, 5, 34, (3, 3), padding=(1, 1, 1, 1), activation="relu", has_residual=True)
    sparse = Conv2d(2, 20, 5, 4, 18, (3, 3), padding=(1, 1, 1, 1), columns=tuple(range(3, 180, 5)))
    cases = [(op, schedule) for op in (small, sparse) for schedule in candidates(op, gpu)]
    # A spread of them: neighbours differ in one number only.
    check(runner, tmp_path, cases[:: len(cases) // 10], target)


@pytest.mark.parametrize("target", TARGETS)
def test_kernel_rows_beside_the_image_are_left_out_of_column_sparse_layers(
    runner: Runner, target: str, tmp_path: Path
) -> None:
    """Kernels higher than the image, paddings beyond the kernel, unequal ones, strides; unrolled columns and a loop."""
    ops = [
        Conv2d(2, 6, 3, 9, 8, (7, 7), padding=(3, 3, 3, 3), columns=tuple(range(1, 294, 5))),
        Conv2d(1, 6, 4, 5, 8, (3, 3), padding=(4, 1, 5, 1), columns=tuple(range(0, 54, 4))),
        Conv2d(1, 8, 5, 8, 8, (3, 2), stride=(2, 1), padding=(2, 0, 0, 1), dilation=(2, 1), columns=(0, 7, 12, 30, 47)),
        Conv2d(1, 4, 6, 8, 8, (5, 5), stride=(2, 2), padding=(0, 2, 4, 2), columns=(24, 49, 54, 99)),
    ]
    cases: list[tuple[Operator, Any]] = []
    for op in ops:
        schedules = [schedule for schedule in candidates(op, gpu_by_name(target)) if schedule.rows == 1]
        cases += [(op, schedule) for schedule in schedules[:: max(1, len(schedules) // 3)]]
    check(runner, tmp_path, cases, target)


@pytest.mark.parametrize("target", TARGETS)
def test_a_shortcut_convolution_adds_to_the_same_launch(runner: Runner, target: str, tmp_path: Path) -> None:
    depthwise = Conv2d(2, 22, 8, 8, 22, (3, 3), padding=(1, 1, 1, 1), groups=22, activation="relu")
    affine = Conv2d(2, 22, 8, 8, 22, (1, 1), groups=22)
    shortcut = Conv2d(2, 10, 16, 15, 22, (1, 1), stride=(2, 2))
    pruned = Conv2d(2, 10, 16, 15, 22, (1, 1), stride=(2, 2), columns=(0, 3, 4, 9))
    cases: list[tuple[Operator, Any]] = []
    for second in (shortcut, pruned):
        for columns in (None, (0, 5, 9, 17, 40, 41, 42, 44, 100)):
            op = Conv2d(
                2, 13, 8, 8, 22, (3, 3), padding=(1, 1, 1, 1), activation="relu", shortcut=second, columns=columns
            )
            schedules = candidates(op, gpu_by_name(target))
            cases += [(op, schedule) for schedule in schedules[:: len(schedules) // 3]]
    for op in (
        replace(depthwise, shortcut=replace(affine, in_height=16, in_width=15, stride=(2, 2))),
        replace(depthwise, shortcut=replace(depthwise, kernel=(5, 5), padding=(2, 2, 2, 2)), has_residual=True),
        Conv2d(2, 13, 8, 8, 22, (3, 3), padding=(1, 1, 1, 1), shortcut=affine),
    ):
        schedules = candidates(op, gpu_by_name(target))
        cases += [(op, schedule) for schedule in schedules[:: max(1, len(schedules) // 3)]]
    check(runner, tmp_path, cases, target)


@pytest.mark.parametrize("target", TARGETS)
def test_the_other_operators_match_float64(runner: Runner, target: str, tmp_path: Path) -> None:
    ops: list[Operator] = [
        *(Elementwise("copy", 2, 10, 9, 11, activation=name) for name in ACTIVATIONS),  # type: ignore[arg-type]
        *(Elementwise(kind, 2, 10, 9, 11, activation="relu") for kind in ("add", "sub", "mul")),  # type: ignore[arg-type]
        Elementwise("mul", 2, 10, 9, 11, broadcast_pixels=True),
        *(Pack(2, channels, 5, 7) for channels in (1, 3, 8, 10)),
        *(Unpack(2, channels, 5, 7) for channels in (1, 3, 8, 10)),
        *(ConcatChannels(2, channels, 5, 6) for channels in ((4, 8), (3, 5), (7, 1, 1, 6, 9), (3,), (1, 1), (6, 10))),
        Interleave(2, 10, 5, 4, (2, 2), (0, 0), 10, 8),
        Interleave(2, 10, 5, 4, (2, 3), (1, 2), 8, 9),
        Interleave(1, 3, 5, 4, (1, 2), (0, 1), 5, 7),
        GlobalAverage(2, 10, 9, 11),
        GlobalAverage(1, 33, 1, 1),
        GlobalAverage(1, 5, 3, 5),
        *(Dense(2, k, o, activation="relu") for k, o in ((40, 10), (37, 12), (7, 3), (130, 64))),
        *(Dense(2, k, o, pooled_pixels=12, input_is_c4=True) for k, o in ((40, 10), (37, 12), (130, 33))),
        Dense(2, 18, 5, input_is_c4=True),
    ]
    gpu = gpu_by_name(target)
    check(runner, tmp_path, [(op, schedule) for op in ops for schedule in candidates(op, gpu)[::3]], target)


def test_a_reduction_split_over_a_whole_group_matches_float64(runner: Runner, tmp_path: Path) -> None:
    ops = (Dense(2, 2100, 10, activation="relu"), Dense(1, 70, 2), Dense(2, 37, 10, pooled_pixels=12, input_is_c4=True))
    shapes = ((2, 128), (1, 256), (1, 100), (3, 67))
    cases = [(op, DenseSchedule(tiles=tiles, split=split)) for op in ops for tiles, split in shapes]
    check(runner, tmp_path, cases, "adreno-640")


def test_every_operator_reads_and_writes_images_and_reads_buffers_as_images(runner: Runner, tmp_path: Path) -> None:
    gpu = with_memory(gpu_by_name("adreno-640"), "image")
    shortcut = Conv2d(2, 10, 16, 15, 22, (1, 1), stride=(2, 2))
    conv = Conv2d(2, 13, 8, 8, 22, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    cases: list[tuple[Operator, Any]] = []
    for op in (
        replace(conv, shortcut=shortcut),
        replace(conv, shortcut=shortcut, columns=(0, 5, 9, 17, 40, 41, 42, 44, 100)),
        replace(conv, kernel=(1, 1), padding=(0, 0, 0, 0), has_residual=True),
        Conv2d(2, 18, 9, 9, 18, (3, 3), padding=(1, 1, 1, 1), groups=18),
        Pool2d("max", 2, 10, 9, 9, 5, 5, (3, 3), (2, 2), (1, 1, 1, 1)),
        Pool2d("avg", 2, 10, 9, 9, 5, 5, (3, 3), (2, 2), (1, 1, 1, 1)),
        GlobalAverage(2, 10, 9, 11),
        Dense(2, 37, 12, pooled_pixels=12, input_is_c4=True, input_width=4),
        Dense(2, 20, 9, input_is_c4=True, input_width=5),
        Elementwise("add", 2, 10, 9, 11, activation="hard_swish"),
        Elementwise("mul", 2, 10, 9, 11, broadcast_pixels=True),
        Pack(2, 10, 5, 7),
        Unpack(2, 10, 5, 7),
        ConcatChannels(2, (7, 1, 1, 6, 9), 5, 6),
        Interleave(2, 10, 5, 4, (2, 2), (1, 0), 9, 8),
    ):
        inputs = [role for role in c4_roles(op) if role != "output"]
        for stored in (with_images(op, c4_roles(op)), *([with_images(op, (), inputs)] if inputs else [])):
            schedules = candidates(stored, gpu)
            assert all(schedule.weights == "image" for schedule in schedules if hasattr(schedule, "weights"))
            cases.append((stored, schedules[len(schedules) // 2]))
    check(runner, tmp_path, cases, "adreno-640")


@pytest.mark.parametrize("target", TARGETS)
def test_long_sums_of_halves_with_a_common_mean_lose_a_few_roundings(
    runner: Runner, target: str, tmp_path: Path
) -> None:
    if not runner.info()[0].fp16:
        return  # refused: see the test of kernels that store half
    gpu, precision = gpu_by_name(target), PRECISIONS["float16"]
    # After a ReLU most inputs have a common mean, so that sums wander far from where they end.
    wide = Conv2d(1, 240, 6, 8, 20, (1, 1))
    large = Conv2d(1, 60, 6, 8, 20, (3, 3), padding=(1, 1, 1, 1))
    ops = [
        wide,
        replace(wide, columns=tuple(range(0, 240, 2))),
        replace(wide, columns=tuple(range(120))),
        large,
        replace(large, kernel=(5, 5), padding=(2, 2, 2, 2)),
        Conv2d(1, 20, 9, 9, 20, (7, 7), padding=(3, 3, 3, 3), groups=20),
    ]
    made = [make_case(op, seed=number, rectified_halves=True) for number, op in enumerate(ops)]
    bundle = tmp_path / "kernels.clbundle"
    write_kernel_bundle(bundle, [case for case, _, _ in made], gpu, precision)
    outputs = runner.run(bundle, [np.zeros(4, np.float32)]).outputs
    for (case, wanted, layout), output in zip(made, outputs, strict=True):
        difference = layout(output).astype(np.float64) - wanted
        lost = np.sqrt((difference**2).mean() / (wanted**2).mean()) * 2**11
        # Eight products at a time lose 1 to 3 roundings; one by one, the 240 lose 8.
        assert lost <= 4, f"{lost:.1f} roundings of half lost by {case.op}"


def c4_roles(op: Operator) -> list[str]:
    """All tensors of an operator that can lie in an image."""
    match op:
        case Pack():
            return ["output"]
        case Unpack() | Dense():
            return ["input0"]
        case ConcatChannels():
            return [*(f"input{number}" for number in range(len(op.channels))), "output"]
        case Elementwise() if op.operator != "copy":
            return ["input0", "input1", "output"]
        case WinogradOutput():
            return ["input0", "output", *(["residual"] if op.has_residual else [])]
        case Conv2d():
            optional = ["residual"] if op.has_residual else []
            return ["input0", *(["input1"] if op.shortcut else []), "output", *optional]
        case _:
            return ["input0", "output"]


def test_small_weights_and_tables_of_offsets_lie_in_constant_memory(runner: Runner, tmp_path: Path) -> None:
    gpu = gpu_by_name("adreno-640")
    dense = Conv2d(1, 3, 12, 12, 12, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    columns = Conv2d(1, 40, 6, 6, 12, (3, 3), padding=(1, 1, 1, 1), columns=tuple(range(0, 360, 12)))
    depthwise = Conv2d(1, 18, 9, 9, 18, (3, 3), padding=(1, 1, 1, 1), groups=18)
    cases: list[tuple[Operator, Any]] = []
    for op in (dense, columns, depthwise):
        schedules = [schedule for schedule in candidates(op, gpu) if schedule.weights == "constant"]
        assert schedules, op
        cases += [(op, schedule) for schedule in schedules[:: max(1, len(schedules) // 3)]]
    check(runner, tmp_path, cases, "adreno-640")


@pytest.mark.parametrize("tile", [2, 4])
def test_the_parts_of_a_winograd_convolution_match_float64(runner: Runner, tile: int, tmp_path: Path) -> None:
    cases: list[tuple[Operator, Any]] = []
    op = Conv2d(2, 10, 9, 11, 7, (3, 3), padding=(1, 1, 0, 2), activation="hard_swish", has_residual=True)
    for part in winograd_parts(op, tile).launches:
        inputs = set(c4_roles(part)) - {"output"}
        forms = (
            part,
            with_images(part, c4_roles(part)),
            with_images(part, {"output"}, inputs),
            with_images(part, (), inputs),
        )
        cases += [(stored, None) for stored in forms]
    check(runner, tmp_path, cases, "adreno-640")


@pytest.mark.parametrize("tile", [2, 4])
def test_transforms_of_several_tiles_and_of_all_rows_match_float64(runner: Runner, tile: int, tmp_path: Path) -> None:
    cases: list[tuple[Operator, Any]] = []
    # Four tiles in a row; the last row and the last column of tiles hang over the edge.
    op = Conv2d(2, 10, 9, 4 * tile, 7, (3, 3), padding=(1, 1, 0, 1), activation="relu6", has_residual=True)
    for part in winograd_parts(op, tile).launches:
        if not isinstance(part, Conv2d):
            shapes = [(local, tiles, whole) for local in (1, 3) for tiles in (1, 2, 4) for whole in (False, True)]
            cases += [(part, TransformSchedule(*shape)) for shape in shapes]
    check(runner, tmp_path, cases, "opencl-cpu")


@pytest.mark.parametrize("target", TARGETS)
def test_pooling_matches_its_definition_for_paddings_dilations_and_rounded_up_sizes(
    runner: Runner, target: str, tmp_path: Path
) -> None:
    ops: list[Operator] = []
    for kind in ("max", "avg"):
        for include in (False, True):
            shape = {"batch": 2, "channels": 6, "in_height": 9, "in_width": 11, "count_include_pad": include}
            for kernel, stride, padding, dilation in (
                ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
                ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
                ((3, 2), (1, 2), (1, 0, 0, 1), (1, 2)),
                ((7, 7), (3, 3), (3, 3, 3, 3), (1, 1)),
            ):
                for up in (False, True):
                    sizes = []
                    for i, extent in enumerate((9, 11)):
                        room = extent + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1
                        steps = -(-room // stride[i]) if up else room // stride[i]
                        # A last window that would start beyond the image and its first padding is left out.
                        sizes.append(steps + 1 - ((steps * stride[i]) >= extent + padding[i]))
                    ops.append(
                        Pool2d(
                            kind,  # type: ignore[arg-type]
                            out_height=sizes[0],
                            out_width=sizes[1],
                            kernel=kernel,
                            stride=stride,
                            padding=padding,
                            dilation=dilation,
                            **shape,  # type: ignore[arg-type]
                        )
                    )
    check(runner, tmp_path, [(op, None) for op in ops], target)


@pytest.mark.parametrize("name", [name for name in PRECISIONS if name != "float32"])
def test_kernels_that_store_half_match_float64_within_its_digits(runner: Runner, name: str, tmp_path: Path) -> None:
    gpu, precision = gpu_by_name("adreno-640"), PRECISIONS[name]
    small = Conv2d(1, 20, 4, 5, 34, (3, 3), padding=(1, 1, 1, 1), activation="hard_swish", has_residual=True)
    shortcut = Conv2d(1, 10, 8, 10, 34, (1, 1), stride=(2, 2))
    depthwise = Conv2d(1, 18, 9, 9, 18, (3, 3), padding=(1, 1, 1, 1), groups=18, activation="relu6")
    ops: list[Operator] = [
        small,
        replace(small, has_residual=False, shortcut=shortcut, columns=tuple(range(3, 180, 5))),
        replace(small, columns=tuple(range(36))),
        depthwise,
        Pool2d("max", 1, 10, 9, 9, 5, 5, (3, 3), (2, 2), (1, 1, 1, 1)),
        Pool2d("avg", 1, 10, 9, 9, 5, 5, (3, 3), (2, 2), (1, 1, 1, 1)),
        GlobalAverage(1, 10, 32, 32),
        Dense(2, 37, 12, activation="relu"),
        Dense(1, 40, 10, pooled_pixels=16, input_is_c4=True),
        Elementwise("mul", 1, 10, 9, 9, activation="silu"),
        Pack(1, 3, 9, 9),
        Unpack(1, 10, 9, 9),
        ConcatChannels(1, (3, 5, 8), 4, 4),
        Interleave(1, 10, 5, 4, (2, 2), (0, 1), 10, 7),
        replace(depthwise, shortcut=replace(depthwise, kernel=(1, 1), padding=(0, 0, 0, 0))),
    ]
    cases = [(op, None) for op in ops]
    split = next(schedule for schedule in candidates(small, gpu) if schedule.split > 1 and schedule.vectors > 1)
    cases += [(small, split), (small, replace(split, split=1))]
    # Two vectors of halves are one load of 128 bits from a buffer.
    cases += [(replace(small, columns=tuple(range(36))), replace(split, weights="buffer"))]
    cases += [(with_images(op, c4_roles(op)), None) for op in ops[2:]]
    # A plain tensor, as the first dense layer reads, is no C4 tensor.
    cases += [(with_images(op, (), set(c4_roles(op)) - {"output"}), None) for op in ops if op != ops[7]]
    if runner.info()[0].fp16:
        check(runner, tmp_path, cases, "adreno-640", precision)
        return
    with pytest.raises(
        DeviceError, match=f"dtype is {name}, '.*' lacks cl_khr_fp16: build the bundle with dtype float32"
    ):
        check(runner, tmp_path, cases[:1], "adreno-640", precision)
