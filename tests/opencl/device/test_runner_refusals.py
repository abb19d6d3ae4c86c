"""What the runner refuses before OpenCL is loaded: every case here runs where no OpenCL can be found."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from device.errors import RunnerStatus
from tests.hand_made_bundle import image_of_buffer_files, npy_bytes, part_files, scale_add_files, sums_of, write_files
from tests.opencl.device.conftest import Outcome, RunnerProcess, WriteBundle

FILES = ["SHA256SUMS", "input_0.npy", "kernels.cl", "manifest.json", "output_0.npy", "plan.txt", "weights.bin"]


def refused(outcome: Outcome, status: RunnerStatus, *said: str) -> None:
    assert outcome.status == status, outcome
    assert outcome.events == []
    assert outcome.stderr.startswith("runner: ")
    assert outcome.stderr.endswith("\n")
    assert outcome.stderr.count("\n") == 1
    for text in said:
        assert text in outcome.stderr


def changed_plan(old: str, new: str, files: dict[str, bytes] | None = None) -> dict[str, bytes]:
    files = scale_add_files() if files is None else files
    plan = files["plan.txt"].decode()
    assert old in plan
    files["plan.txt"] = plan.replace(old, new, 1).encode()
    return files


def test_a_whole_bundle_gets_as_far_as_looking_for_opencl(blind_runner: RunnerProcess, bundle: Path) -> None:
    refused(blind_runner("check", bundle), RunnerStatus.NO_OPENCL, "STRUCTADMM_OPENCL_LIBRARY")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_an_integrity_error_that_names_the_file(
    blind_runner: RunnerProcess, bundle: Path, name: str
) -> None:
    content = bytearray((bundle / name).read_bytes())
    at = 10 if name == "SHA256SUMS" else len(content) // 2
    # In SHA256SUMS another hex digit takes the place of the one that was there.
    content[at] = ord("0") + (content[at] == ord("0")) if name == "SHA256SUMS" else content[at] ^ 1
    (bundle / name).write_bytes(content)
    guilty = "input_0.npy" if name == "SHA256SUMS" else name
    refused(blind_runner("check", bundle), RunnerStatus.INTEGRITY, guilty, "SHA-256")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_truncated_and_not_changed(blind_runner: RunnerProcess, bundle: Path, name: str) -> None:
    whole = (bundle / name).read_bytes()
    # The manifest's closing newline alone carries nothing.
    last = len(whole) - (2 if name == "manifest.json" else 1)
    lengths = {0, len(whole) // 2, last} if blind_runner.emulator else {0, 1, 5, 9, 66, len(whole) // 2, last}
    for length in sorted(lengths & set(range(last + 1))):
        (bundle / name).write_bytes(whole[:length])
        refused(blind_runner("check", bundle), RunnerStatus.TRUNCATED, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(blind_runner: RunnerProcess, bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(blind_runner("check", bundle), RunnerStatus.FILE, name, "No such file")


def test_a_missing_bundle_is_named(blind_runner: RunnerProcess, tmp_path: Path) -> None:
    refused(blind_runner("bench", tmp_path / "none"), RunnerStatus.FILE, "none/plan.txt")


def test_a_fifo_in_place_of_a_file_does_not_hang(blind_runner: RunnerProcess, bundle: Path) -> None:
    (bundle / "weights.bin").unlink()
    os.mkfifo(bundle / "weights.bin")
    refused(blind_runner("check", bundle), RunnerStatus.FILE, "weights.bin")


def test_a_newer_format_is_refused_before_anything_else_is_read(blind_runner: RunnerProcess, tmp_path: Path) -> None:
    (tmp_path / "plan.txt").write_bytes(b"structadmm-plan 4\n\x00\xff nothing that version 3 knows")
    refused(blind_runner("check", tmp_path), RunnerStatus.NEWER, "format 4 is newer than 3")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("structadmm-plan 1", "structadmm-plan 0", "line 1"),
        ("structadmm-plan 1", "structadmm-plan 1 ", "line 1"),
        ("structadmm-plan 1", "another-plan 1", "does not start"),
        ("target test-device", "target test device", "after its last field"),
        ("target test-device\n", "", "no 'target'"),
        ("dtype float32", "dtype float32\ndtype float32", "out of order"),
        ("dtype float32", "dtype float\t32", "printable"),
        ("dtype float32", "dtype float32\r", "printable"),
        ("dtype float32", "dtype " + "a" * 256, "a name"),
        ("dtype float32", "#" + "a" * 5000, "longer than"),
        ("buffer 0 256", "buffer 1 256", "the next memory ID"),
        ("buffer 0 256", "buffer 0 0", "a size in bytes"),
        ("buffer 0 256", "buffer 0 -1", "a size in bytes"),
        ("buffer 0 256", "buffer 0 4294967297", "a size in bytes"),
        ("buffer 0 256", "buffer 0 18446744073709551617", "a size in bytes"),
        ("buffer 0 256", "buffer  0 256", "empty field"),
        ("buffer 0 256", "buffer 0 256 ", "after its last field"),
        ("buffer 0 256", "texture 0 256", "unknown keyword 'texture'"),
        ("buffer 0 256", "image2d 0 65536 65536 rgba_float", "exceeds the largest"),
        ("buffer 0 256", "image2d 0 16 16 rgba_int8", "rgba_float or rgba_half"),
        ("buffer 0 256", "image2d 0 16 16 rgba_float", "needs a buffer"),
        ("buffer 0 256", "buffer 0 252", "needs a buffer of 256"),
        ("constant 1 256 128", "constant 1 256 129", "constant 1 is weights.bin[129, +256)"),
        ("constant 1 256 128", "constant 1 256 9223372036854775807", "constant 1 is weights.bin"),
        ("input 0 float32 2 1 64 x", "input 9 float32 2 1 64 x", "a memory ID"),
        ("input 0 float32 2 1 64 x", "input 0 float64 2 1 64 x", "float32, float16 or int32"),
        ("input 0 float32 2 1 64 x", "input 0 float32 9 1 64 x", "a rank"),
        ("input 0 float32 2 1 64 x", "input 0 float32 2 0 64 x", "a dimension"),
        (
            "input 0 float32 2 1 64 x",
            "input 0 float32 4 4294967296 4294967296 4294967296 64 x",
            "more elements than 64 bits",
        ),
        ("input 0 float32 2 1 64 x", "input 0 float32 2 64 1 x", "takes float32 [64, 1]"),
        ("sample input 0 input_0.npy\n", "", "no sample for input 0"),
        ("sample input 0 input_0.npy", "sample input 1 input_0.npy", "the number of an input"),
        ("sample input 0 input_0.npy", "sample input 0 ../input_0.npy", "plain file name"),
        ("sample input 0 input_0.npy", "sample input 0 .hidden", "plain file name"),
        ("sample input 0 input_0.npy", "sample input 0 other.npy", "not listed"),
        ("output_0.npy 1e-06", "output_0.npy -1", "a tolerance"),
        ("output_0.npy 1e-06", "output_0.npy nan", "a tolerance"),
        ("output_0.npy 1e-06", "output_0.npy inf", "a tolerance"),
        ("program 0 0", "program 0 99999", "program 0 is kernels.cl[99999"),
        ("launch 0 scale_add", "launch 2 scale_add", "a program ID"),
        ("scale_add 1 64 16", "scale_add 4 64 16", "a number of dimensions"),
        ("scale_add 1 64 16", "scale_add 1 64 15", "not a multiple"),
        ("scale_add 1 64 16", "scale_add 1 0 16", "a global size"),
        ("relu 1 64 0", "relu 2 64 64 0 8", "not a multiple"),
        ("layer/one 5", "layer/one 6", "ends where"),
        ("layer/one 5", "layer/one 4", "after its last field"),
        ("layer/one 5", "layer/one 129", "kernel arguments"),
        ("m0 m1 m2", "m0 m1 m4", "m4 does not exist"),
        ("m0 m1 m2", "m0 m1 x2", "mID, iVALUE or fVALUE"),
        ("i-3", "i2147483648", "mID, iVALUE or fVALUE"),
        ("f2.0", "f1e39", "mID, iVALUE or fVALUE"),
        ("f2.0", "fnan", "mID, iVALUE or fVALUE"),
        ("\nend\n", "\nend\nend\n", "follows 'end'"),
    ],
)
def test_a_malformed_plan_is_refused_with_its_line(
    blind_runner: RunnerProcess, write_bundle: WriteBundle, old: str, new: str, said: str
) -> None:
    refused(blind_runner("check", write_bundle(changed_plan(old, new))), RunnerStatus.MALFORMED, said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("structadmm-plan 2", "structadmm-plan 1", "line 5: 'part' came with bundle format 2, the plan says 1"),
        ("part 1 0 0 2048", "part 1 1 0 2048", "the memory ID of a buffer"),
        ("part 1 0 0 2048", "part 1 7 0 2048", "the memory ID of a buffer"),
        ("part 1 0 0 2048", "part 2 0 0 2048", "the next memory ID"),
        ("part 1 0 0 2048", "part 1 0 0 0", "a size in bytes"),
        ("part 1 0 0 2048", "part 1 0 0", "a size in bytes"),
        ("part 1 0 0 2048", "part 1 0 0 2048 1", "after its last field"),
        ("part 1 0 0 2048", "part 1 0 256 2048", "line 5: a part begins at byte 256, expected a multiple of 512"),
        ("part 1 0 0 2048", "part 1 0 6656 2048", "bytes [6656, +2048) of memory object 0, which is a buffer of 8192"),
        ("part 1 0 0 2048", "part 1 0 0 4294967296", "of memory object 0, which is a buffer of 8192"),
        ("part 1 0 0 2048", "part 1 0 4294967296 4294967296", "of memory object 0, which is a buffer of 8192"),
        ("part 1 0 0 2048", "part 1 0 18446744073709551104 1024", "an offset in the buffer"),
        ("part 2 0 2048 2048", "part 2 1 0 2048", "of memory object 1, which is no buffer, but something of 2048"),
        ("buffer 0 8192", "constant 0 8192 0", "which is no buffer"),
        (
            "input 1 float32 1 512 x",
            "input 3 float32 1 512 x",
            "needs a buffer of 2048 bytes, memory object 3 is one",
        ),
        ("m3 m6 m4", "m3 m6 m5", "line 18: m3 and m5 of one launch share bytes"),
        ("m3 m6 m4", "m3 m6 m0", "m3 and m0 of one launch share bytes"),
        ("m3 m6 m4", "m2 m3 m4", "m2 and m3 of one launch share bytes"),
    ],
)
def test_a_malformed_part_is_refused_with_its_line(
    blind_runner: RunnerProcess, write_bundle: WriteBundle, old: str, new: str, said: str
) -> None:
    bundle = write_bundle(changed_plan(old, new, part_files()))
    refused(blind_runner("check", bundle), RunnerStatus.MALFORMED, said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("structadmm-plan 3", "structadmm-plan 2", "'image1d_buffer' came with bundle format 3, the plan says 2"),
        ("image1d_buffer 6 2 128", "image1d_buffer 6 6 128", "the memory ID of a buffer"),
        ("image1d_buffer 6 2 128", "image1d_buffer 7 2 128", "the next memory ID"),
        ("image1d_buffer 6 2 128", "image1d_buffer 6 2 0", "a number of texels"),
        ("image1d_buffer 6 2 128", "image1d_buffer 6 2", "a number of texels"),
        ("image1d_buffer 6 2 128", "image1d_buffer 6 2 4294967297", "a number of texels"),
        ("image1d_buffer 6 2 128 rgba_float", "image1d_buffer 6 2 128 rgba_int", "expected rgba_float or rgba_half"),
        ("image1d_buffer 6 2 128 rgba_float", "image1d_buffer 6 2 128 rgba_float 0", "after its last field"),
        (
            "image1d_buffer 6 2 128",
            "image1d_buffer 6 2 129",
            "an image of 2064 bytes of memory object 2, which is a buffer",
        ),
        ("image1d_buffer 6 2 128", "image1d_buffer 6 2 4294967296", "of memory object 2, which is a buffer of 2048"),
        (
            "image1d_buffer 7 4 60",
            "image1d_buffer 7 6 60",
            "memory object 6, which is no buffer, but something of 2048",
        ),
        ("buffer 4 1024", "image2d 4 8 8 rgba_float", "memory object 4, which is no buffer, but something of 1024"),
        ("input 1 float32 1 512 x", "input 6 float32 1 512 x", "needs a buffer"),
        ("m6 m8 m4", "m6 m8 m2", "m6 and m2 of one launch share bytes"),
        ("m6 m8 m4", "m6 m8 m3", "m6 and m3 of one launch share bytes"),
        ("m6 m8 m4", "m6 m8 m0", "m6 and m0 of one launch share bytes"),
    ],
)
def test_a_malformed_image_of_a_buffer_is_refused_with_its_line(
    blind_runner: RunnerProcess, write_bundle: WriteBundle, old: str, new: str, said: str
) -> None:
    bundle = write_bundle(changed_plan(old, new, image_of_buffer_files()))
    refused(blind_runner("check", bundle), RunnerStatus.MALFORMED, said)


def test_a_plan_with_parts_gets_as_far_as_looking_for_opencl(
    blind_runner: RunnerProcess, write_bundle: WriteBundle
) -> None:
    refused(blind_runner("check", write_bundle(part_files())), RunnerStatus.NO_OPENCL)
    refused(blind_runner("check", write_bundle(image_of_buffer_files())), RunnerStatus.NO_OPENCL)
    # One object may be two arguments: nothing is known of what the kernel writes.
    twice = changed_plan("m3 m6 m4", "m3 m3 m4", part_files())
    refused(blind_runner("check", write_bundle(twice)), RunnerStatus.NO_OPENCL)


def test_a_plan_without_end_whose_digest_agrees_is_truncated(
    blind_runner: RunnerProcess, write_bundle: WriteBundle
) -> None:
    refused(blind_runner("check", write_bundle(changed_plan("\nend\n", "\n"))), RunnerStatus.TRUNCATED, "without 'end'")


@pytest.mark.parametrize(
    ("sums", "said"),
    [
        (lambda sums: sums.replace(b"  input_0", b" *input_0"), "line 1"),
        (lambda sums: sums.replace(b"  input_0.npy", b"  ../../input_0.npy"), "plain file name"),
        (lambda sums: sums.upper(), "line 1"),
        (lambda sums: b"".join(reversed(sums.splitlines(keepends=True))), "not sorted"),
        (lambda sums: sums.splitlines(keepends=True)[0] + sums, "not sorted"),
    ],
)
def test_a_malformed_list_of_digests_is_refused(
    blind_runner: RunnerProcess, bundle: Path, sums: object, said: str
) -> None:
    assert callable(sums)
    (bundle / "SHA256SUMS").write_bytes(sums((bundle / "SHA256SUMS").read_bytes()))
    refused(blind_runner("check", bundle), RunnerStatus.MALFORMED, said)


def test_a_list_of_digests_without_a_required_file_is_refused(blind_runner: RunnerProcess, bundle: Path) -> None:
    files = scale_add_files()
    del files["manifest.json"]
    (bundle / "SHA256SUMS").write_bytes(sums_of(files))
    refused(blind_runner("check", bundle), RunnerStatus.TRUNCATED, "lists no manifest.json")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((1, 65), np.float32), "holds float32 [1, 65]"),
        (np.zeros((64,), np.float32), "holds float32 [64]"),
        (np.zeros((), np.float32), "holds float32 []"),
        (np.zeros((1, 64), np.float16), "takes float32 [1, 64]"),
        (np.zeros((1, 64), np.int32), "holds int32"),
        (np.zeros((1, 64), np.float64), "dtype"),
        (np.zeros((1, 64), ">f4"), "dtype"),
        (np.asfortranarray(np.zeros((2, 32), np.float32)), "order"),
    ],
)
def test_an_input_of_another_shape_or_dtype_is_refused(
    blind_runner: RunnerProcess, bundle: Path, tmp_path: Path, array: np.ndarray, said: str
) -> None:
    (tmp_path / "x.npy").write_bytes(npy_bytes(array))
    outcome = blind_runner("run", bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    refused(outcome, RunnerStatus.INPUT, said)
    assert not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_stack_of_another_number_of_samples_is_refused(
    blind_runner: RunnerProcess, bundle: Path, tmp_path: Path, rows: int
) -> None:
    (tmp_path / "x.npy").write_bytes(npy_bytes(np.zeros((rows, 64), np.float32)))
    files = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    refused(
        blind_runner("run", bundle, *files, "--samples", "3"), RunnerStatus.INPUT, f"takes float32 [3, 64], '{tmp_path}"
    )
    assert not (tmp_path / "y.npy").exists()


def test_a_stack_that_is_larger_than_any_memory_object_is_refused(blind_runner: RunnerProcess, tmp_path: Path) -> None:
    bundle = write_files(tmp_path / "large.clbundle", scale_add_files(1 << 16))
    files = ("--input", bundle / "input_0.npy", "--output", tmp_path / "y.npy")
    outcome = blind_runner("run", bundle, *files, "--samples", "1000000")
    refused(outcome, RunnerStatus.INPUT, "1000000 samples of 'x' are more than 4294967296 bytes")


def test_a_file_that_is_no_array_and_one_that_is_cut_are_told_apart(
    blind_runner: RunnerProcess, bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.npy"
    command = ("run", bundle, "--input", path, "--output", tmp_path / "y.npy")
    path.write_bytes(b"PK\x03\x04 not numpy's")
    refused(blind_runner(*command), RunnerStatus.INPUT, "not a .npy file")
    whole = (bundle / "input_0.npy").read_bytes()
    for length in (0, 4, 8, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(blind_runner(*command), RunnerStatus.TRUNCATED, "x.npy")
    path.write_bytes(whole + b"\0")
    refused(blind_runner(*command), RunnerStatus.INPUT, "after its data")
    path.unlink()
    refused(blind_runner(*command), RunnerStatus.FILE, "x.npy")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no command"),
        (("dance",), "unknown command 'dance'"),
        (("check",), "one bundle"),
        (("check", "a", "b"), "one bundle"),
        (("info", "a"), "no bundle"),
        (("bench", *"abcdefghijklmnopq"), "more than 16 bundles"),
        (("bench", "a", "--runs"), "no value"),
        (("bench", "a", "--runs", "0"), "--runs takes a whole number from 1 to 1000000"),
        (("bench", "a", "--runs", "-1"), "--runs"),
        (("bench", "a", "--runs", "1e3"), "--runs"),
        (("bench", "a", "--runs", "99999999999999999999999"), "--runs"),
        (("bench", "a", "--input", "x"), "no option '--input'"),
        (("run", "a", "--samples", "0"), "--samples takes a whole number from 1 to 1000000"),
        (("bench", "a", "--samples", "2"), "no option '--samples'"),
        (("check", "a", "--recording", "yes"), "--recording takes on or off, got 'yes'"),
        (("check", "a", "--perf-hint", ""), "--perf-hint takes on or off"),
        (("info", "--priority-hint", "off"), "no option '--priority-hint'"),
        (("check", "a", "--seed", "1"), "no option '--seed'"),
        (("check", "a", "--device", ""), "--device is empty"),
        (("check", "a", "--cache", ""), "--cache is empty"),
    ],
)
def test_a_wrong_command_line_is_refused(blind_runner: RunnerProcess, arguments: tuple[str, ...], said: str) -> None:
    refused(blind_runner(*arguments), RunnerStatus.USAGE, said)


def test_run_wants_one_file_for_each_tensor(blind_runner: RunnerProcess, bundle: Path) -> None:
    refused(blind_runner("run", bundle), RunnerStatus.USAGE, "1 inputs and 1 outputs, got 0 --input and 0 --output")


def test_a_library_that_is_not_opencl_is_refused(blind_runner: RunnerProcess) -> None:
    refused(blind_runner("info", STRUCTADMM_OPENCL_LIBRARY="libc.so.6"), RunnerStatus.NO_OPENCL, "clGetPlatformIDs")


def test_control_characters_of_a_bundle_do_not_reach_the_terminal(blind_runner: RunnerProcess, tmp_path: Path) -> None:
    outcome = blind_runner("check", tmp_path / "evil\n\x1b[2Jrunner: fine")
    refused(outcome, RunnerStatus.FILE)
    assert "\x1b" not in outcome.stderr


def test_the_first_bad_bundle_of_several_is_reported(blind_runner: RunnerProcess, bundle: Path, tmp_path: Path) -> None:
    bad = write_files(tmp_path / "bad.clbundle", changed_plan("relu 1 64", "relu 9 64"))
    refused(blind_runner("bench", bundle, bad), RunnerStatus.MALFORMED)


def test_help_lists_every_command_and_every_exit_status(blind_runner: RunnerProcess) -> None:
    result = subprocess.run([*blind_runner.command, "--help"], capture_output=True, text=True, check=True)
    for word in ("info", "run", "check", "bench", "profile", "--device", "--cache", "--runs", "--seed"):
        assert word in result.stdout
    for status in RunnerStatus:
        assert status is RunnerStatus.OK or f" {status.value} " in result.stdout.replace("\n", " ")


def test_results_that_cannot_be_written_are_an_error(blind_runner: RunnerProcess) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run([*blind_runner.command, "help"], stdout=full, check=False)
    assert result.returncode == RunnerStatus.FILE
