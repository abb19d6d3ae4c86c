"""The runner on real OpenCL drivers, against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from device.errors import RunnerStatus
from tests.hand_made_bundle import (
    Program,
    bundle_files,
    image_of_buffer_files,
    npy_bytes,
    part_files,
    scale_add_files,
)
from tests.opencl.device.conftest import DRIVERS, RunnerProcess, WriteBundle

IMAGES = """
__kernel void pack(__global const float *x, __write_only image2d_t image, int width) {
  int i = get_global_id(0), j = get_global_id(1);
  write_imagef(image, (int2)(i, j), vload4(j * width + i, x));
}
__kernel void stack(__read_only image2d_t image, __read_only image2d_t weights, __write_only image2d_array_t layers) {
  const sampler_t sampler = CLK_NORMALIZED_COORDS_FALSE | CLK_ADDRESS_CLAMP | CLK_FILTER_NEAREST;
  int2 at = (int2)(get_global_id(0), get_global_id(1));
  int layer = get_global_id(2);
  float4 texel = read_imagef(image, sampler, at) * read_imagef(weights, sampler, (int2)(layer, 0));
  write_imagef(layers, (int4)(at, layer, 0), texel);
}
__kernel void unpack(__read_only image2d_array_t layers, __global float *y, int width, int height) {
  const sampler_t sampler = CLK_NORMALIZED_COORDS_FALSE | CLK_ADDRESS_CLAMP | CLK_FILTER_NEAREST;
  int i = get_global_id(0), j = get_global_id(1), k = get_global_id(2);
  vstore4(read_imagef(layers, sampler, (int4)(i, j, k, 0)), (k * height + j) * width + i, y);
}
"""


def image_files(texel: str) -> dict[str, bytes]:
    """Through an image, a constant image and an image array, all with odd sides; every number is exact in half."""
    width, height, layers = 5, 3, 7
    x = np.arange(width * height * 4, dtype=np.float32).reshape(height, width, 4)
    weights = np.arange(1, layers * 4 + 1, dtype=np.float32).reshape(layers, 4)
    y = (x[None] * weights[:, None, None]).astype(np.float32)
    dtype = np.float32 if texel == "rgba_float" else np.float16
    return bundle_files(
        [
            f"buffer 0 {x.nbytes}",
            f"image2d 1 {width} {height} {texel}",
            f"constant_image2d 2 {layers} 1 {texel} 256",
            f"image2d_array 3 {width} {height} {layers} {texel}",
            f"buffer 4 {y.nbytes}",
            f"input 0 float32 3 {height} {width} 4 x",
            f"output 4 float32 4 {layers} {height} {width} 4 y",
        ],
        [Program(IMAGES)],
        [x],
        [y],
        weights=bytes(256) + weights.astype(dtype).tobytes(),
        tolerance=0,
        launches=[
            f"launch 0 pack 2 {width} {height} 0 0 0 0 pack 3 m0 m1 i{width}",
            f"launch 0 stack 3 {width} {height} {layers} 1 1 {layers} 0 0 stack 3 m1 m2 m3",
            f"launch 0 unpack 3 {width} {height} {layers} 0 0 0 0 0 unpack 4 m3 m4 i{width} i{height}",
        ],
    )


DTYPES = """
__kernel void twice(__global const int *i, __global int *j, __global const ushort *h, __global ushort *k) {
  size_t n = get_global_id(0);
  j[n] = 2 * i[n];
  k[n] = h[n];
}
"""


def dtype_files() -> dict[str, bytes]:
    """Two inputs and two outputs, int32 and float16."""
    integers = np.array([-(2**30), -1, 0, 7], np.int32)
    halves = np.array([-65504, 6e-8, np.inf, 1.5], np.float16)
    return bundle_files(
        [
            "buffer 0 16",
            "buffer 1 16",
            "buffer 2 64",
            "buffer 3 64",
            "input 0 int32 1 4 integers",
            "input 2 float16 1 4 halves",
            "output 1 int32 1 4 doubled",
            "output 3 float16 1 4 same",
        ],
        [Program(DTYPES)],
        [integers, halves],
        [2 * integers, halves.astype(np.float32)],
        tolerance=0,
        launches=["launch 0 twice 1 4 4 0 0 both 4 m0 m1 m2 m3"],
    )


def edited(old: str, new: str) -> dict[str, bytes]:
    files = scale_add_files()
    plan = files["plan.txt"].decode()
    assert old in plan
    files["plan.txt"] = plan.replace(old, new, 1).encode()
    return files


def with_kernel(old: str, new: str) -> dict[str, bytes]:
    """The scale_add bundle with a replacement of equal length in its source."""
    files = scale_add_files()
    assert len(old) == len(new)
    assert old.encode() in files["kernels.cl"]
    files["kernels.cl"] = files["kernels.cl"].replace(old.encode(), new.encode(), 1)
    return files


def test_info_describes_every_device_of_the_driver(runner: RunnerProcess) -> None:
    outcome = runner("info")
    devices = [line for line in outcome.events if line["event"] == "device"]
    assert outcome.status == 0
    assert devices
    for device in devices:
        assert device["compute_units"] > 0
        assert device["base_align_bytes"] >= 16
        assert "cl_khr" in device["extensions"]
        assert device["fp16"] == ("cl_khr_fp16" in device["extensions"].split())


def test_check_accepts_what_the_bundle_expects(runner: RunnerProcess, bundle: Path) -> None:
    outcome = runner("check", bundle, "--device", "0.0")
    assert outcome.status == 0, outcome
    [output] = outcome.one("check")["outputs"]
    # A driver may fuse the multiplication and the addition, which moves the last bit of values near 5.
    assert output["max_abs_error"] <= 1e-6
    assert output["max_abs_expected"] == pytest.approx(np.load(bundle / "output_0.npy").max())


def test_parts_of_a_buffer_share_its_bytes(runner: RunnerProcess, write_bundle: WriteBundle, tmp_path: Path) -> None:
    bundle = write_bundle(part_files())
    outcome = runner("check", bundle, "--device", "0.0")
    assert outcome.status == 0, outcome
    # Inputs and outputs in parts, several runs of one plan.
    x = np.arange(3 * 512, dtype=np.float32) - 700
    (tmp_path / "x.npy").write_bytes(npy_bytes(x))
    files = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", "--samples", 3)
    assert runner("run", bundle, *files, "--device", "0.0").status == 0
    expected = np.maximum(x.reshape(3, 512)[:, 128:384] + 2, 0)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy").reshape(3, 256), expected)


def test_a_part_that_nothing_wrote_fails_the_check(runner: RunnerProcess, write_bundle: WriteBundle) -> None:
    files = part_files()
    files["plan.txt"] = files["plan.txt"].replace(b"part 3 0 2560 1024", b"part 3 0 6144 1024")
    outcome = runner("check", write_bundle(files), "--device", "0.0")
    assert outcome.status == RunnerStatus.CHECK, outcome


def test_buffers_parts_and_constants_are_read_as_images(
    runner: RunnerProcess, write_bundle: WriteBundle, tmp_path: Path
) -> None:
    bundle = write_bundle(image_of_buffer_files())
    outcome = runner("check", bundle, "--device", "0.0")
    assert outcome.status == 0, outcome
    x = np.arange(3 * 512, dtype=np.float32) - 700
    (tmp_path / "x.npy").write_bytes(npy_bytes(x))
    files = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", "--samples", 3)
    outcome = runner("run", bundle, *files, "--device", "0.0")
    assert outcome.status == 0, outcome
    w = np.arange(512, dtype=np.float32)
    second = (x.reshape(3, 512) + w)[:, :256][:, ::-1] + w[:256]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy").reshape(3, 240), second[:, :240][:, ::-1] + w[:240])
    # A driver that makes no images of parts, such as PoCL 3.1, gives the one that is read so memory of its own.
    assert outcome.one("session")["image_max_buffer"] >= 65536
    assert outcome.one("run")["memory_bytes"] in (8192 + 1024 + 2048, 8192 + 1024 + 2048 + 2048)


def test_an_image_of_bytes_that_nothing_wrote_fails_the_check(runner: RunnerProcess, write_bundle: WriteBundle) -> None:
    files = image_of_buffer_files()
    # The first launch writes to part 3, image 6 is of part 2 still.
    files["plan.txt"] = files["plan.txt"].replace(b"part 3 0 2560 1024", b"part 3 0 4096 2048")
    files["plan.txt"] = files["plan.txt"].replace(b"m1 m5 m2", b"m1 m5 m3")
    outcome = runner("check", write_bundle(files), "--device", "0.0")
    assert outcome.status == RunnerStatus.CHECK, outcome


def test_run_agrees_with_numpy_on_an_input_of_ones_own(runner: RunnerProcess, bundle: Path, tmp_path: Path) -> None:
    x = np.linspace(-5, 5, 64, dtype=np.float32).reshape(1, 64)
    w = np.frombuffer((bundle / "weights.bin").read_bytes()[128:], np.float32)
    (tmp_path / "x.npy").write_bytes(npy_bytes(x))
    outcome = runner("run", bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", "--device", "0.0")
    assert outcome.status == 0, outcome
    # float32 on both sides: one rounding of values up to 15 apart.
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.maximum(x * 2.0 + w - 3.0, 0), atol=2e-6)


def test_many_samples_in_one_process_are_what_one_after_the_other_gives(
    runner: RunnerProcess, bundle: Path, tmp_path: Path
) -> None:
    samples = np.random.default_rng(1).standard_normal((5, 64), dtype=np.float32)
    single = []
    for k, stack in enumerate((samples, *samples[:, None])):
        (tmp_path / "x.npy").write_bytes(npy_bytes(stack))
        files = ("--input", tmp_path / "x.npy", "--output", tmp_path / f"y{k}.npy", "--device", "0.0")
        outcome = runner("run", bundle, *files, "--samples", len(stack))
        assert outcome.status == 0, outcome
        assert outcome.one("run")["samples"] == len(stack)
        single.append(np.load(tmp_path / f"y{k}.npy"))
    assert single[0].shape == (5, 64)
    np.testing.assert_array_equal(single[0], np.concatenate(single[1:]))


@pytest.mark.parametrize("texel", ["rgba_float", "rgba_half"])
def test_images_constant_images_and_image_arrays_keep_every_texel_in_its_place(
    runner: RunnerProcess, write_bundle: WriteBundle, texel: str
) -> None:
    outcome = runner("check", write_bundle(image_files(texel)), "--device", "0.0")
    assert outcome.status == 0, outcome


def test_several_inputs_and_outputs_of_every_dtype_pass(
    runner: RunnerProcess, write_bundle: WriteBundle, tmp_path: Path
) -> None:
    bundle = write_bundle(dtype_files())
    assert runner("check", bundle, "--device", "0.0").status == 0
    files = [bundle / "input_0.npy", bundle / "input_1.npy"]
    options = [word for file in files for word in ("--input", file)]
    options += [word for k in range(2) for word in ("--output", tmp_path / f"o{k}.npy")]
    assert runner("run", bundle, *options, "--device", "0.0").status == 0
    assert np.load(tmp_path / "o0.npy").tolist() == [-(2**31), -2, 0, 14]
    halves = np.load(tmp_path / "o1.npy")
    assert halves.dtype == np.float16
    assert halves.tolist() == np.load(files[1]).tolist()


def test_a_profile_that_checks_first_times_nothing_wrong(
    runner: RunnerProcess, bundle: Path, write_bundle: WriteBundle
) -> None:
    right = runner("profile", bundle, "--check", "on", "--runs", 2, "--device", "0.0")
    assert right.status == 0, right
    assert [event["event"] for event in right.events] == ["session", "check", "launch", "launch", "profile"]
    wrong = runner("profile", write_bundle(edited("i-3", "i-2")), "--check", "on", "--runs", 2, "--device", "0.0")
    assert wrong.status == 12
    assert [event["event"] for event in wrong.events] == ["session", "check"]
    assert runner("check", bundle, "--check", "on").status == 2


def test_a_wrong_result_fails_the_check_with_its_size(runner: RunnerProcess, write_bundle: WriteBundle) -> None:
    outcome = runner("check", write_bundle(edited("i-3", "i-2")), "--device", "0.0")
    assert outcome.status == RunnerStatus.CHECK
    # relu(z + 1) differs from relu(z) by 1 wherever z >= 0.
    assert outcome.one("check")["outputs"][0]["max_abs_error"] == pytest.approx(1, abs=1e-5)
    assert not outcome.one("check")["passed"]
    assert "output 'y' is off by 1" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(("tolerance", "passes"), [(0.99, False), (1.01, True)])
def test_the_tolerance_is_where_a_check_begins_to_fail(
    runner: RunnerProcess, write_bundle: WriteBundle, tolerance: float, passes: bool
) -> None:
    files = edited("i-3", "i-2")  # off by 1
    files["plan.txt"] = files["plan.txt"].replace(b"output_0.npy 1e-06", f"output_0.npy {tolerance}".encode())
    outcome = runner("check", write_bundle(files), "--device", "0.0")
    assert outcome.status == (0 if passes else RunnerStatus.CHECK), outcome


@pytest.mark.parametrize("wrong_run", ["first", "second"])
def test_one_wrong_run_of_the_two_fails_the_check(
    runner: RunnerProcess, write_bundle: WriteBundle, wrong_run: str
) -> None:
    # The first run finds its memory full of NaN, the second what the first has left.
    branches = {"first": "x[i] + 1.0f : x[i]", "second": "x[i] : x[i] + 1.0f"}[wrong_run]
    source = f"""
__kernel void remember(__global const float *x, __global float *y) {{
  int i = get_global_id(0);
  y[i] = isnan(y[i]) ? {branches};
}}
"""
    x = np.ones((1, 64), np.float32)
    files = bundle_files(
        ["buffer 0 256", "buffer 1 256", "input 0 float32 2 1 64 x", "output 1 float32 2 1 64 y"],
        [Program(source)],
        [x],
        [x],
        launches=["launch 0 remember 1 64 0 64 512 layer 2 m0 m1"],
    )
    outcome = runner("check", write_bundle(files), "--device", "0.0")
    assert outcome.status == RunnerStatus.CHECK, outcome
    assert outcome.one("check")["outputs"][0]["max_abs_error"] == 1


def test_nan_fails_the_check_whatever_the_tolerance(runner: RunnerProcess, write_bundle: WriteBundle) -> None:
    files = with_kernel("fmax(x[i], 0.0f)", "nan((uint)0)*1.f")
    files["plan.txt"] = files["plan.txt"].replace(b"1e-06", b"1e300")
    outcome = runner("check", write_bundle(files), "--device", "0.0")
    assert outcome.status == RunnerStatus.CHECK, outcome
    assert outcome.one("check")["outputs"][0]["not_finite"] == 64


def test_a_plan_that_reads_what_nothing_wrote_fails_the_check(runner: RunnerProcess, write_bundle: WriteBundle) -> None:
    # Without its first launch the network takes its answer from memory that a lucky driver hands out as zeros.
    files = scale_add_files(scale=0.0, shift=-100)
    lines = files["plan.txt"].decode().splitlines(keepends=True)
    files["plan.txt"] = "".join(line for line in lines if "launch 0" not in line).encode()
    files["kernels.cl"] = files["kernels.cl"].replace(b"fmax(x[i], 0.0f)", b"x[i] * x[i]     ")
    assert not np.load(write_bundle(files) / "output_0.npy").any()
    outcome = runner("check", write_bundle(files), "--device", "0.0")
    assert outcome.status == RunnerStatus.CHECK, outcome


def test_a_kernel_that_does_not_compile_gives_one_line_and_the_whole_log(
    runner: RunnerProcess, write_bundle: WriteBundle
) -> None:
    outcome = runner("check", write_bundle(with_kernel("y[i] = fmax(", "y[i] = fmxa(")), "--device", "0.0")
    assert outcome.status == RunnerStatus.OPENCL
    assert outcome.stderr.startswith("runner: clBuildProgram failed with CL_BUILD_PROGRAM_FAILURE (-11) for program 1")
    assert outcome.stderr.count("\n") == 1
    assert outcome.one("build_log")["program"] == 1
    assert "fmxa" in outcome.one("build_log")["log"]


@pytest.mark.parametrize(
    ("old", "new", "status", "said"),
    [
        ("relu 1 64", "rely 1 64", RunnerStatus.OPENCL, "clCreateKernel failed with CL_INVALID_KERNEL_NAME"),
        ("2 m2 m3", "1 m2", RunnerStatus.MALFORMED, "gives kernel relu 1 arguments, it takes 2"),
        ("2 m2 m3", "3 m2 m3 m3", RunnerStatus.MALFORMED, "gives kernel relu 3 arguments, it takes 2"),
        (
            "2 m2 m3",
            "2 m2 i3",
            RunnerStatus.OPENCL,
            "clSetKernelArg failed with CL_INVALID_ARG_SIZE (-51) for argument 1",
        ),
        ("i-3", "m2", RunnerStatus.OPENCL, "for argument 4 (m2) of launch 0 (layer layer/one, kernel scale_add)"),
        ("relu 1 64 0", "relu 1 65536 65536", RunnerStatus.DEVICE_LIMIT, "work-groups of 65536 x 1 x 1"),
    ],
)
def test_what_only_the_driver_can_tell_is_one_line_that_names_the_launch(
    runner: RunnerProcess, write_bundle: WriteBundle, old: str, new: str, status: RunnerStatus, said: str
) -> None:
    outcome = runner("check", write_bundle(edited(old, new)), "--device", "0.0")
    assert outcome.status == status, outcome
    assert said in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_more_memory_than_the_device_has_is_refused_before_any_is_taken(
    runner: RunnerProcess, write_bundle: WriteBundle
) -> None:
    files = scale_add_files()
    more = "".join(f"buffer {k} 4294967296\n" for k in range(4, 19))
    files["plan.txt"] = files["plan.txt"].replace(b"input 0 ", more.encode() + b"input 0 ", 1)
    outcome = runner("check", write_bundle(files), "--device", "0.0")
    assert outcome.status == RunnerStatus.MEMORY
    assert "the bundle needs 64424510" in outcome.stderr or "memory object 4 has" in outcome.stderr


def test_an_image_larger_than_the_device_takes_is_refused(runner: RunnerProcess, write_bundle: WriteBundle) -> None:
    files = image_files("rgba_float")
    files["plan.txt"] = files["plan.txt"].replace(b"image2d 1 5 3", b"image2d 1 65536 3")
    outcome = runner("check", write_bundle(files), "--device", "0.0")
    assert outcome.status == RunnerStatus.DEVICE_LIMIT
    assert "image 1 is 65536 x 3 x 1 texels" in outcome.stderr


@pytest.mark.parametrize("device", ["9.0", "0.99", "no such name"])
def test_an_unknown_device_is_refused_with_the_list_of_those_there_are(
    runner: RunnerProcess, bundle: Path, device: str
) -> None:
    outcome = runner("check", bundle, "--device", device)
    assert outcome.status == RunnerStatus.NO_DEVICE
    assert outcome.events == []
    assert f"'{device}' matches 0 devices" in outcome.stderr
    assert "0.0 " in outcome.stderr


def test_a_device_is_found_by_part_of_its_name_in_any_case(runner: RunnerProcess, bundle: Path) -> None:
    first = next(line for line in runner("info").events if line["event"] == "device")
    outcome = runner("check", bundle, "--device", first["platform"].upper())
    assert outcome.status == 0, outcome
    assert outcome.one("session")["index"] == first["index"]


def test_a_machine_whose_loader_knows_no_driver_has_no_opencl(bundle: Path, tmp_path: Path) -> None:
    if "pocl" not in DRIVERS:
        pytest.skip("needs the system's OpenCL loader: apt-get install ocl-icd-libopencl1 pocl-opencl-icd")
    from device.runner_build import build_runner

    outcome = RunnerProcess(build_runner(), {"OCL_ICD_VENDORS": str(tmp_path)})("check", bundle)
    assert outcome.status == RunnerStatus.NO_OPENCL
    assert "install an OpenCL driver" in outcome.stderr
    assert outcome.events == []
