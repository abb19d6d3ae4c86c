"""What the emitted OpenCL looks like, and what the cost model says about it; no device is needed."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from structadmm.errors import InvariantError, UserError
from tests.kernel_references import make_case
from tvm_build.cost import estimate, predict_us
from tvm_build.emit import OpenClKernel, emit_opencl
from tvm_build.gpu import GPUS, Gpu, gpu_by_name, with_memory
from tvm_build.kernels import build_kernel, candidates, default_schedule, supports
from tvm_build.kernels.conv_tiling import ConvSchedule, Tiling
from tvm_build.kernels.dense import DenseSchedule
from tvm_build.kernels.space import weight_steps
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
    with_images,
)
from tvm_build.precision import PRECISIONS, Precision

ADRENO = gpu_by_name("adreno-640")
CONV = Conv2d(1, 64, 32, 32, 64, (3, 3), padding=(1, 1, 1, 1), activation="relu", has_residual=True)
SPARSE = replace(CONV, columns=tuple(range(0, 576, 4)))
BLOCKS = replace(CONV, columns=tuple(range(0, 36)))
SMALL = Conv2d(1, 72, 4, 4, 72, (3, 3), padding=(1, 1, 1, 1), activation="relu")
DEPTHWISE = Conv2d(1, 18, 9, 9, 18, (3, 3), padding=(1, 1, 1, 1), groups=18)
OPERATORS: tuple[Operator, ...] = (
    CONV,
    SPARSE,
    BLOCKS,
    SMALL,
    Conv2d(1, 3, 33, 33, 20, (7, 7), stride=(2, 2), padding=(3, 3, 3, 3)),
    replace(CONV, has_residual=False, shortcut=Conv2d(1, 32, 64, 64, 64, (1, 1), stride=(2, 2))),
    Conv2d(1, 30, 9, 9, 45, (3, 3), groups=15),
    DEPTHWISE,
    replace(DEPTHWISE, shortcut=Conv2d(1, 18, 18, 18, 18, (1, 1), stride=(2, 2), groups=18)),
    replace(DEPTHWISE, groups=1, shortcut=Conv2d(1, 18, 9, 9, 18, (1, 1), groups=18)),
    Pool2d("max", 1, 10, 9, 9, 5, 5, (3, 3), (2, 2), (1, 1, 1, 1)),
    Pool2d("avg", 1, 10, 9, 9, 5, 5, (3, 3), (2, 2), (1, 1, 1, 1)),
    GlobalAverage(1, 10, 7, 7),
    Dense(1, 40, 10),
    Dense(1, 40, 10, pooled_pixels=16, input_is_c4=True),
    Elementwise("add", 1, 10, 9, 9, activation="hard_swish"),
    Pack(1, 3, 9, 9),
    Unpack(1, 10, 9, 9),
    ConcatChannels(1, (3, 5, 8), 4, 4),
    Interleave(1, 10, 5, 4, (2, 2), (0, 1), 10, 7),
)


def emit(op: Operator, gpu_name: str = "adreno-640") -> OpenClKernel:
    case, _, _ = make_case(op)
    return emit_opencl(build_kernel(op, case.constants, gpu_by_name(gpu_name)).func)


@pytest.mark.parametrize("gpu_name", ["adreno-640", "opencl-cpu"])
@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: type(op).__name__)
def test_an_operator_is_one_kernel_whose_private_arrays_have_one_element(op: Operator, gpu_name: str) -> None:
    assert supports(op)
    kernel = emit(op, gpu_name)
    assert kernel.source.count("__kernel") == 1
    x, y, z = (*kernel.local_size, 1, 1)[:3]
    assert f"__attribute__((reqd_work_group_size({x}, {y}, {z}))) void {kernel.name}(" in kernel.source
    assert f"void {kernel.name}(" in kernel.source
    private = [line for line in kernel.source.splitlines() if re.fullmatch(r"\s*(?:float|int)\d* \w+\[\d+\];", line)]
    assert all(line.endswith("[1];") for line in private)
    assert all(size % local == 0 for size, local in zip(kernel.global_size, kernel.local_size, strict=True))
    assert int(np.prod(kernel.local_size)) <= gpu_by_name(gpu_name).max_work_group


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: type(op).__name__)
def test_parameters_roles_and_constants_belong_together(op: Operator) -> None:
    case, _, _ = make_case(op)
    built = build_kernel(op, case.constants, ADRENO)
    kernel = emit_opencl(built.func)
    assert sorted(kernel.arguments) == sorted(built.roles)
    constants = {role.removeprefix("constant:") for role in built.roles.values() if role.startswith("constant:")}
    assert constants == set(built.constants)
    assert all(array.flags.c_contiguous for array in built.constants.values())
    assert {role for role in built.roles.values() if not role.startswith("constant:")} == {*case.inputs, "output"}


def test_the_same_operator_gives_the_same_source() -> None:
    for op in (CONV, SPARSE, SMALL):
        assert emit(op) == emit(op)


@pytest.mark.parametrize("op", [CONV, BLOCKS, SMALL], ids=["dense", "blocks", "small"])
def test_convolutions_read_and_write_vectors_only(op: Conv2d) -> None:
    source = emit(op).source
    parameters = re.findall(r"__global (\w+)\* restrict (\w+)", source)
    scalars = [name for dtype, name in parameters if dtype in ("float", "half")]
    assert not scalars
    # What is not a vector is the table of offsets: one entry for 4 x 4 x vectors x pixels products.
    assert all(dtype == "int" and name == "offset_ptr" for dtype, name in parameters if dtype != "float4")


def test_a_tile_of_a_large_layer_makes_at_least_eight_multiply_adds_of_each_load() -> None:
    for op in (CONV, BLOCKS):
        assert estimate(op, default_schedule(op, ADRENO), ADRENO).macs_per_load >= 8


@pytest.mark.parametrize("gather", ["lanes", "blocks"])
def test_a_layer_without_some_columns_holds_and_multiplies_the_others_alone(gather: Literal["lanes", "blocks"]) -> None:
    # Trap: zero columns left in a dense convolution make it smaller on paper and no faster. Every weight that the
    # kernel holds is multiplied once for each pixel, and each step of its reduction is an entry of the offset table.
    for op in (SPARSE, BLOCKS):
        assert op.columns is not None
        case, _, _ = make_case(op)
        schedule = replace(default_schedule(op, ADRENO), gather=gather)
        whole = gather == "blocks" and op is SPARSE  # every fourth column: each block of four channels has one
        built = build_kernel(op, case.constants, ADRENO, schedule)
        columns = 576 if whole else len(op.columns)
        assert built.constants["weight"].size == 64 * columns
        assert np.count_nonzero(built.constants["weight"]) == 64 * len(op.columns)
    case, _, _ = make_case(CONV)
    assert build_kernel(CONV, case.constants, ADRENO).constants["weight"].size == 64 * 576


def test_depthwise_convolutions_in_one_launch_hold_and_multiply_their_taps_alone() -> None:
    op = replace(DEPTHWISE, shortcut=replace(DEPTHWISE, kernel=(1, 1), padding=(0, 0, 0, 0)))
    case, _, _ = make_case(op)
    for schedule in candidates(op, ADRENO):
        built = build_kernel(op, case.constants, ADRENO, schedule)
        assert built.constants["weight"].size + built.constants["shortcut_weight"].size == 20 * (9 + 1)
        cost = estimate(op, schedule, ADRENO)
        assert cost.flops <= 2 * 4 * (9 + 1) * schedule.pixels * schedule.rows * cost.work_items


@pytest.mark.parametrize("op", [op for op in OPERATORS if isinstance(op, Conv2d)])
def test_weights_are_as_many_as_their_place_in_memory_was_chosen_for(op: Conv2d) -> None:
    case, _, _ = make_case(op)
    for schedule in candidates(op, ADRENO)[::5]:
        built = build_kernel(op, case.constants, ADRENO, schedule)
        size = sum(array.size for name, array in built.constants.items() if name.endswith("weight"))
        channels = schedule.tile_channels * -(-op.out_channels // schedule.tile_channels)
        assert size == channels * sum(weight_steps(op, schedule))
        if schedule.weights == "constant":
            assert 4 * size <= ADRENO.constant_bytes


def test_the_source_of_a_layer_does_not_grow_with_its_channels() -> None:
    wide = replace(CONV, in_channels=512, out_channels=512, has_residual=True)
    schedule = default_schedule(CONV, ADRENO)
    for op in (CONV, wide):
        case, _, _ = make_case(op)
        source = emit_opencl(build_kernel(op, case.constants, ADRENO, schedule).func).source
        assert len(source) < 40_000


@pytest.mark.parametrize("channels", [32, 960])
@pytest.mark.parametrize("gpu_name", ["adreno-540", "adreno-640"])
def test_a_group_of_a_depthwise_layer_fills_a_wave_however_small_the_image_is(gpu_name: str, channels: int) -> None:
    gpu = gpu_by_name(gpu_name)
    op = Conv2d(1, channels, 7, 7, channels, (3, 3), padding=(1, 1, 1, 1), groups=channels)
    for schedule in candidates(op, gpu):
        tiling = Tiling(op, schedule)
        # Constant memory gives all of a wave the same weights, so a group has tiles of one channel block alone.
        most = tiling.count * (1 if schedule.weights == "constant" else tiling.channel_tiles)
        assert min(gpu.wave, most) // 2 < math.prod(tiling.grid.local) <= gpu.wave


@pytest.mark.parametrize(("inputs", "outputs", "split"), [(25088, 10, 256), (8192, 2, 256), (512, 10, 128)])
def test_a_dense_layer_with_few_outputs_splits_its_reduction_over_all_work_items(
    inputs: int, outputs: int, split: int
) -> None:
    op = Dense(1, inputs, outputs)
    schedule = default_schedule(op, ADRENO)
    cost = estimate(op, schedule, ADRENO)
    assert schedule.split == split
    wide = predict_us(op, DenseSchedule(tiles=8, split=32, weights="image"), ADRENO)
    assert cost.predicted_us - ADRENO.launch_us < 0.7 * (wide - ADRENO.launch_us)
    # No work-item adds up all parts one after the other.
    case, _, _ = make_case(Dense(1, 64, outputs))
    source = emit_opencl(build_kernel(Dense(1, 64, outputs), case.constants, ADRENO, schedule).func).source
    assert source.count("barrier(") == 1 + {256: 3, 128: 2}[split]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_groups_of_kernels_that_share_nothing_are_whole_waves(gpu: Gpu) -> None:
    flat = [op for op in OPERATORS if isinstance(op, Pool2d | Elementwise | Pack | Unpack | ConcatChannels)]
    assert len(flat) == 6
    for op in flat:
        for schedule in candidates(op, gpu):
            assert schedule.local >= 64
            assert schedule.local % gpu.wave == 0


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_what_must_move_is_what_a_kernel_reads_and_writes_once(precision: Precision) -> None:
    # Of convolutions and dense layers, bias and tables are left out.
    ops = [op for op in OPERATORS if not isinstance(op, Conv2d | Dense)]
    ops += [Pool2d("avg", 1, 8, 28, 28, 4, 4, (7, 7), (7, 7), (0, 0, 0, 0))]
    ops += [Elementwise("mul", 1, 10, 9, 9, broadcast_pixels=True), Elementwise("copy", 2, 10, 9, 9)]
    for op in ops:
        case, _, _ = make_case(op)
        built = build_kernel(op, case.constants, ADRENO, None, precision)
        assert estimate(op, built.schedule, ADRENO, precision).memory_bytes == built.bytes


def test_a_small_layer_is_split_over_work_items_and_a_large_one_is_not() -> None:
    assert default_schedule(SMALL, ADRENO).split > 1
    assert default_schedule(CONV, ADRENO).split == 1
    assert "barrier(CLK_LOCAL_MEM_FENCE)" in emit(SMALL).source


def test_the_default_schedule_is_the_candidate_with_the_lowest_prediction() -> None:
    for name in ("adreno-540", "adreno-640", "adreno-830", "opencl-cpu"):
        gpu = gpu_by_name(name)
        for op in OPERATORS:
            predictions = [predict_us(op, schedule, gpu) for schedule in candidates(op, gpu)]
            assert predict_us(op, default_schedule(op, gpu), gpu) == min(predictions)
            assert min(predictions) > 0


def test_pruned_columns_lower_the_prediction_on_every_target() -> None:
    for gpu in GPUS.values():
        dense, half, eighth = (
            predict_us(op, default_schedule(op, gpu), gpu)
            for op in (CONV, replace(CONV, columns=tuple(range(288))), replace(CONV, columns=tuple(range(72))))
        )
        assert eighth < half < dense


def test_scattered_columns_are_read_one_by_one_and_whole_blocks_together() -> None:
    assert default_schedule(replace(CONV, columns=tuple(range(0, 576, 36))), ADRENO).gather == "lanes"
    whole = tuple(sorted(channel * 9 + tap for channel in range(0, 16) for tap in (0, 4, 7)))
    assert default_schedule(replace(CONV, columns=whole), ADRENO).gather == "blocks"


def test_an_unknown_target_is_refused_with_the_names_of_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"adreno-640, .*opencl-cpu, got 'adreno-999'") as refusal:
        gpu_by_name("adreno-999")
    assert "\n" not in str(refusal.value)


def test_a_constant_of_the_wrong_shape_is_refused() -> None:
    case, _, _ = make_case(CONV)
    constants = dict(case.constants) | {"bias": np.zeros(63, np.float32)}
    with pytest.raises(InvariantError, match=r"'bias' with shape \(64,\), got \(63,\)"):
        build_kernel(CONV, constants, ADRENO)
    with pytest.raises(InvariantError, match=r"'weight' with shape .*, got nothing"):
        build_kernel(CONV, {}, ADRENO)


def test_half_precision_halves_weights_and_traffic_and_leaves_plain_tensors_alone() -> None:
    for op in (CONV, SPARSE, Dense(1, 40, 10)):
        case, _, _ = make_case(op)
        whole = build_kernel(op, case.constants, ADRENO)
        for precision in (PRECISIONS["float16"], PRECISIONS["float16_float32"]):
            half = build_kernel(op, case.constants, ADRENO, whole.schedule, precision)
            assert half.constants["weight"].nbytes * 2 == whole.constants["weight"].nbytes
            assert half.bytes < 0.7 * whole.bytes
            plain = isinstance(op, Dense)
            assert half.scalars["input"] == ("float32" if plain else "float16")
            assert half.scalars["output"] == ("float32" if plain else "float16")


def test_only_float16_multiplies_in_half_and_all_sums_are_float32() -> None:
    case, _, _ = make_case(CONV)
    sources = {
        name: emit_opencl(build_kernel(CONV, case.constants, ADRENO, None, precision).func).source
        for name, precision in PRECISIONS.items()
    }
    multiplied = {
        name: set(re.findall(r"\(\((\w+)\)\(\(v_\d+\)\.s[0-3]\)\) \* v_", source)) for name, source in sources.items()
    }
    assert multiplied == {"float32": {"float4"}, "float16": {"half4"}, "float16_float32": {"float4"}}
    assert "half" not in sources["float32"]
    assert "convert_float4" in sources["float16_float32"]
    assert "convert_half4" in sources["float16_float32"]
    # An accumulator for each sum in half, which is added to it.
    registers = re.findall(r"(\w+) (_ptr\w*)\[1\];", sources["float16"])
    totals, halves = ([name for dtype, name in registers if dtype == kind] for kind in ("float4", "half4"))
    assert len(totals) == len(halves) > 0
    for total, half in zip(totals, halves, strict=True):
        assert f"{total}[0] = ({total}[0] + (convert_float4({half}[0])))" in sources["float16"]


def test_a_weight_beyond_half_is_refused_in_half_only() -> None:
    case, _, _ = make_case(CONV)
    constants = {**case.constants, "weight": case.constants["weight"] * 1e6}
    build_kernel(CONV, constants, ADRENO)
    with pytest.raises(UserError, match=r"up to 65504 for half precision, got .*: compile with float32"):
        build_kernel(CONV, constants, ADRENO, None, PRECISIONS["float16"])


def test_half_precision_is_predicted_to_be_faster_where_it_moves_or_computes_more() -> None:
    for op in (CONV, SMALL, Dense(1, 4096, 1000)):
        schedule = default_schedule(op, ADRENO)
        whole, half, mixed = (predict_us(op, schedule, ADRENO, precision) for precision in PRECISIONS.values())
        assert whole > half
        assert whole >= mixed >= half


def test_the_page_about_kernels_shows_what_is_emitted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    (shown,) = re.findall(r"```c\n(.*?)```", page, re.DOTALL)
    op = with_images(replace(CONV, has_residual=False), ("input0", "output"))
    schedule = ConvSchedule(pixels=2, rows=1, vectors=1, local=64, weights="image", unroll_rows=False)
    case, _, _ = make_case(op)
    source = emit_opencl(build_kernel(op, case.constants, ADRENO, schedule).func).source
    assert [line for line in shown.splitlines() if line not in source.splitlines()] == []


def test_images_of_halves_and_pairs_of_them_are_read_as_their_types_say() -> None:
    op = with_images(CONV, ("input0", "output", "residual"))
    case, _, _ = make_case(op)
    schedule = default_schedule(op, ADRENO)
    for name, reads in (("float32", "texel("), ("float16", "texel_half("), ("float16_float32", "texel(")):
        source = emit_opencl(build_kernel(op, case.constants, ADRENO, schedule, PRECISIONS[name]).func).source
        assert "__read_only image2d_t input_ptr" in source
        assert "__write_only image2d_t output_ptr" in source
        assert f" {reads}input_ptr, " in source
    pairs = replace(default_schedule(CONV, with_memory(ADRENO, "buffer")), vectors=2, weights="buffer")
    source = emit_opencl(build_kernel(CONV, case.constants, ADRENO, pairs, PRECISIONS["float16"]).func).source
    assert "__global half8* restrict weight_ptr" in source


def test_an_image_needs_no_predicate_where_a_buffer_does() -> None:
    schedule = replace(default_schedule(CONV, with_memory(ADRENO, "buffer")), pixels=2, rows=2)
    case, _, _ = make_case(CONV)
    sources = {
        roles: emit_opencl(build_kernel(with_images(CONV, roles), case.constants, ADRENO, schedule).func).source
        for roles in ((), ("input0",))
    }
    assert sources[()].count("condval") > 0
    assert sources["input0",].count("condval") == 0


def test_a_buffer_that_is_read_as_an_image_is_addressed_and_guarded_like_a_pointer() -> None:
    schedule = replace(default_schedule(CONV, with_memory(ADRENO, "buffer")), pixels=2, rows=2)
    case, _, _ = make_case(CONV)

    def source(views: tuple[str, ...], precision: str) -> str:
        op = with_images(CONV, (), views)
        return emit_opencl(build_kernel(op, case.constants, ADRENO, schedule, PRECISIONS[precision]).func).source

    for name, read in (("float32", "texel_at"), ("float16", "texel_half_at"), ("float16_float32", "texel_at")):
        viewed = source(("input0", "residual"), name)
        assert "__read_only image1d_buffer_t input_ptr, __global" in viewed
        assert "__read_only image1d_buffer_t residual_ptr, __global" in viewed
        # What it writes is a pointer.
        assert re.search(r"__global (float|half)4\* restrict output_ptr", viewed)
        pointers = source((), name)
        assert viewed.count("condval") == pointers.count("condval") > 0
        assert viewed.count(f" {read}(input_ptr, ") == pointers.count(" input_ptr[") + pointers.count("(input_ptr[") > 0


def test_lanes_are_gathered_from_pointers_alone() -> None:
    columns = replace(CONV, columns=tuple(range(0, 60, 7)), has_residual=False)
    shortcut = replace(columns, kernel=(1, 1), padding=(0, 0, 0, 0), columns=(0, 3, 5))
    joined = replace(CONV, has_residual=False, shortcut=shortcut)
    for op, role in ((columns, "input0"), (joined, "input1")):
        for placed in (with_images(op, [role]), with_images(op, (), [role])):
            assert {schedule.gather for schedule in candidates(placed, ADRENO)} == {"blocks"}
        assert {schedule.gather for schedule in candidates(op, ADRENO)} == {"blocks", "lanes"}


def test_what_is_asked_of_memory_is_what_candidates_offer() -> None:
    small = Conv2d(1, 3, 12, 12, 12, (3, 3), padding=(1, 1, 1, 1))
    offered = {
        memory: {schedule.weights for schedule in candidates(small, with_memory(ADRENO, memory))}
        for memory in ("auto", "buffer", "image")
    }
    assert offered == {"auto": {"buffer", "image", "constant"}, "buffer": {"buffer"}, "image": {"image"}}
    with pytest.raises(UserError, match="expected memory auto, buffer, image, got 'texture'"):
        with_memory(ADRENO, "texture")


def test_constant_memory_holds_twice_as_many_halves() -> None:
    op = Conv2d(1, 12, 32, 32, 12, (3, 3), padding=(1, 1, 1, 1))
    offered = {
        name: any(schedule.weights == "constant" for schedule in candidates(op, ADRENO, precision))
        for name, precision in PRECISIONS.items()
    }
    assert offered == {"float32": False, "float16": True, "float16_float32": True}


def test_a_kernel_that_reads_constant_memory_says_how_much_and_wants_to_be_alone() -> None:
    op = Conv2d(1, 3, 12, 12, 12, (3, 3), padding=(1, 1, 1, 1))
    schedule = next(schedule for schedule in candidates(op, ADRENO) if schedule.weights == "constant")
    case, _, _ = make_case(op)
    kernel = emit_opencl(build_kernel(op, case.constants, ADRENO, schedule).func)
    assert kernel.alone
    size = 3 * 9 * 4 * 4 * schedule.vectors * -(-3 // schedule.vectors)
    assert f"__constant float4* restrict weight_ptr __attribute__((max_constant_size({size})))" in kernel.source


@pytest.mark.parametrize("columns", [None, tuple(range(0, 36)), tuple(range(0, 72 * 9, 3))])
def test_padding_that_every_tile_has_is_left_out_of_the_products(columns: tuple[int, ...] | None) -> None:
    op = replace(SMALL, columns=columns)
    case, _, _ = make_case(op)
    # One tile is the whole image: of 4 x 4 pixels times 3 x 3 taps, 10 x 10 meet the image.
    schedule = ConvSchedule(pixels=4, rows=4, vectors=1, local=1, gather="blocks")
    source = emit_opencl(build_kernel(op, case.constants, with_memory(ADRENO, "buffer"), schedule).func).source
    taps = {column % 9 for column in columns or range(9)}
    inside = sum((4 - (tap % 3 != 1)) * (4 - (tap // 3 != 1)) for tap in taps)
    products = len(re.findall(r"\(\(float4\)\(\(v_\d+\)\.s\d\)\) \* v_\d+", source))
    assert products == 4 * inside
    assert "if (" not in source
    estimated = estimate(op, schedule, with_memory(ADRENO, "buffer"))
    steps = [len({c // 36 for c in columns if c % 9 == tap}) if columns else 18 for tap in range(9)]
    weighted = sum(n * (4 - (tap % 3 != 1)) * (4 - (tap // 3 != 1)) for tap, n in enumerate(steps))
    assert estimated.flops == 2 * 4 * 4 * weighted * estimated.work_items


def test_a_wide_accumulator_leaves_in_stores_of_its_own_width() -> None:
    cpu = gpu_by_name("opencl-cpu")
    case, _, _ = make_case(CONV)
    for pixels, width in ((8, 16), (6, 4)):
        schedule = ConvSchedule(pixels=pixels, lanes=16, local=1)
        source = emit_opencl(build_kernel(CONV, case.constants, cpu, schedule).func).source
        assert f"__global float{width}* restrict output_ptr" in source
        assert f"__global float{width}* restrict residual_ptr" in source
        assert len(re.findall(r"output_ptr\[.*\] = ", source)) == pixels * 16 // width
