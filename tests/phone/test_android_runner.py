"""The file that a phone would get, executed: see `tests/emulated_android` for what that shows and what it cannot."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from device.errors import RunnerStatus
from device.runner_build import build_runner
from tests.emulated_android import PIXEL_OPENCL, VENDOR_OPENCL, Emulated, add_opencl, android, missing_requirement
from tests.hand_made_bundle import part_files, scale_add_files, write_files

pytestmark = pytest.mark.skipif(bool(missing_requirement()), reason=missing_requirement() or "nothing is missing")


@pytest.fixture(scope="module")
def executable() -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ANDROID_NDK_HOME", raising=False)
        return build_runner("arm64-v8a")


@pytest.fixture
def bare(tmp_path: Path) -> Emulated:
    return android(tmp_path / "android")


@pytest.fixture
def phone(bare: Emulated) -> Emulated:
    add_opencl(bare)
    return bare


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_files(tmp_path / "net.clbundle", scale_add_files())


def execute(emulated: Emulated, executable: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*emulated.command, str(executable), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def events(result: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    assert result.returncode == 0, result
    assert result.stderr == ""
    return {event["event"]: event for event in map(json.loads, result.stdout.splitlines())}


def refused(result: subprocess.CompletedProcess[str], status: RunnerStatus) -> str:
    assert result.returncode == status, result
    assert result.stdout == ""
    assert result.stderr.startswith("runner: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_it_starts_reads_its_words_and_ends_with_what_main_returns(bare: Emulated, executable: Path) -> None:
    helped = execute(bare, executable, "help")
    assert helped.returncode == 0
    assert helped.stdout.startswith("structadmm runner")
    assert "'pruned nets'" in refused(execute(bare, executable, "pruned nets"), RunnerStatus.USAGE)


@pytest.mark.parametrize(("page_bytes", "status"), [(4096, 0), (16384, 0), (65536, 127)])
def test_the_linker_maps_it_on_pages_of_4_and_16_kb(
    bare: Emulated, executable: Path, page_bytes: int, status: int
) -> None:
    """The linker is started with the program's path, as a command, so that it and not qemu maps the program. It has to
    refuse pages of 64 KB, or it would not have looked."""
    qemu, *options = bare.command
    command = [qemu, "-p", str(page_bytes), *options, str(bare.root / "system/bin/linker64"), str(executable), "help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == status, result
    assert ("not page-aligned" in result.stderr) == (status != 0)


def test_errno_comes_from_the_library_that_set_it(bare: Emulated, executable: Path) -> None:
    said = refused(execute(bare, executable, "check", "/data/nothing"), RunnerStatus.FILE)
    assert "/data/nothing/plan.txt' (No such file or directory)" in said


def test_without_any_opencl_it_says_so_in_one_line(bare: Emulated, executable: Path) -> None:
    assert "no OpenCL library on this machine" in refused(execute(bare, executable, "info"), RunnerStatus.NO_OPENCL)


def test_it_takes_the_vendors_library_and_says_so(phone: Emulated, executable: Path) -> None:
    library = events(execute(phone, executable, "info"))["library"]
    assert library["opencl_library"] == "/vendor/lib64/libOpenCL.so"


def test_the_old_path_of_the_vendors_library_serves_too(bare: Emulated, executable: Path) -> None:
    add_opencl(bare, "system/vendor/lib64/libOpenCL.so")
    library = events(execute(bare, executable, "info"))["library"]
    assert library["opencl_library"] == "/system/vendor/lib64/libOpenCL.so"


def test_a_library_that_only_the_linker_finds_is_taken_by_name(bare: Emulated, executable: Path) -> None:
    add_opencl(bare, "system/lib64/libOpenCL.so.1")
    assert events(execute(bare, executable, "info"))["library"]["opencl_library"] == "libOpenCL.so.1"


def test_on_a_pixel_the_functions_come_from_googles_wrapper(bare: Emulated, executable: Path, bundle: Path) -> None:
    add_opencl(bare, PIXEL_OPENCL)
    said = events(execute(bare, executable, "check", bundle))
    assert said["session"]["opencl_library"] == "libOpenCL-pixel.so"
    assert said["check"]["passed"] is True


def test_a_vendor_library_that_is_there_and_does_not_load_is_the_one_that_is_told(
    bare: Emulated, executable: Path
) -> None:
    library = bare.root / VENDOR_OPENCL
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\x7fELF of some other kind")
    said = refused(execute(bare, executable, "info"), RunnerStatus.NO_OPENCL)
    assert "/vendor/lib64/libOpenCL.so: " in said


def test_a_bundle_is_checked_with_all_of_qualcomms_extras(phone: Emulated, executable: Path, bundle: Path) -> None:
    said = events(execute(phone, executable, "check", bundle))
    assert said["session"]["perf_hint_set"] is True
    assert said["session"]["priority_hint_set"] is True
    assert said["session"]["recording_set"] is True
    assert said["check"]["recordings"] == 1
    assert said["check"]["passed"] is True


def test_parts_of_a_buffer_are_made_and_recorded(phone: Emulated, executable: Path, tmp_path: Path) -> None:
    bundle = write_files(tmp_path / "parts.clbundle", part_files())
    said = events(execute(phone, executable, "check", bundle))
    assert said["check"]["recordings"] == 1
    assert said["check"]["passed"] is True


def test_what_it_writes_is_what_numpy_computes(phone: Emulated, executable: Path, bundle: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((1, 64), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    events(execute(phone, executable, "run", bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy"))
    w = np.frombuffer((bundle / "weights.bin").read_bytes()[128:], np.float32)
    expected = np.maximum(x * np.float32(2) + w - np.float32(3), 0)
    # One multiplication and two additions in float32; a compiler may fuse them.
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=0, atol=1e-6)


def test_program_binaries_are_kept_and_found_again(
    phone: Emulated, executable: Path, bundle: Path, tmp_path: Path
) -> None:
    counts = []
    for _ in range(2):
        said = events(execute(phone, executable, "check", bundle, "--cache", tmp_path / "cache"))
        counts.append(said["check"]["binary_cache"])
    assert [count["hits"] for count in counts] == [0, 2]  # type: ignore[index]
    assert [count["misses"] for count in counts] == [2, 0]  # type: ignore[index]
    kept = sorted((tmp_path / "cache").iterdir())
    # Files made through Android's open(): a mode that got lost among the variable arguments would show here.
    assert [path.stat().st_mode & 0o700 for path in kept] == [0o600, 0o600]


def test_timing_and_profile_come_with_every_sample(phone: Emulated, executable: Path, bundle: Path) -> None:
    bench = events(execute(phone, executable, "bench", bundle, "--runs", 12, "--warmup-ms", 1))["bench"]
    samples = bench["total_samples_ms"]
    assert isinstance(samples, list)
    assert len(samples) == 12
    assert all(0 < sample < 60_000 for sample in samples)
    profile = events(execute(phone, executable, "profile", bundle, "--runs", 3))["profile"]
    assert profile["launches"] == 2


@pytest.mark.parametrize("name", ["plan.txt", "kernels.cl", "weights.bin", "input_0.npy", "output_0.npy"])
def test_a_changed_byte_is_found_before_opencl_is_opened(
    bare: Emulated, executable: Path, bundle: Path, name: str
) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    assert name in refused(execute(bare, executable, "check", bundle), RunnerStatus.INTEGRITY)
