from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from structadmm.errors import UserError
from tests.compile.test_plan_text import small_plan
from tvm_build.bundle import read_bundle, write_bundle
from tvm_build.launch_plan import Constant, LaunchPlan, Program
from tvm_build.plan_text import write_plan

KERNELS = b"// " + b"x" * 96 + b"\n"


def write(path: Path, plan: LaunchPlan | None = None) -> Path:
    write_bundle(
        path,
        plan=plan or small_plan(),
        kernels=KERNELS,
        weights=bytes(range(144)),
        manifest={"schema": 1, "name": path.stem},
        inputs=[np.ones((1, 4), np.float32)],
        outputs=[np.ones(4, np.float32)],
    )
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in sorted(path.iterdir())}


def seal(path: Path) -> None:
    """Write SHA256SUMS anew, as somebody would who changes a bundle on purpose."""
    import hashlib

    lines = [
        f"{hashlib.sha256(item.read_bytes()).hexdigest()}  {item.name}\n"
        for item in sorted(path.iterdir())
        if item.name != "SHA256SUMS"
    ]
    (path / "SHA256SUMS").write_text("".join(lines))


def test_a_bundle_reads_back_with_its_plan(tmp_path: Path) -> None:
    bundle = read_bundle(write(tmp_path / "a.clbundle"))
    assert bundle.plan == small_plan()
    assert bundle.manifest["name"] == "a"
    assert bundle.kernels.encode() == KERNELS


def test_writing_twice_gives_the_same_bytes_and_replaces_the_first(tmp_path: Path) -> None:
    first = contents(write(tmp_path / "a.clbundle"))
    assert contents(write(tmp_path / "a.clbundle")) == first
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.clbundle"]


def test_a_full_disk_names_the_bundle_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device") as told:
        write(tmp_path / "a.clbundle")
    assert told.value.filename == str(tmp_path / "a.clbundle")
    assert not list(tmp_path.iterdir())


def test_sha256sum_accepts_the_sums(tmp_path: Path) -> None:
    import subprocess

    path = write(tmp_path / "a.clbundle")
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=path, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "name", ["plan.txt", "kernels.cl", "weights.bin", "input_0.npy", "output_0.npy", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_every_damaged_file_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    path = write(tmp_path / "a.clbundle")
    data = bytearray((path / name).read_bytes())
    if damage == "flip":
        # Not in the first line, where a greater version would be reported as just that.
        data[-2] ^= 1
        (path / name).write_bytes(bytes(data))
    elif damage == "truncate":
        (path / name).write_bytes(bytes(data[:-1]))
    else:
        (path / name).unlink()
    with pytest.raises(UserError) as caught:
        read_bundle(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def edit(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (path / name).write_bytes(change((path / name).read_bytes()))
    seal(path)


def test_a_newer_version_is_refused_before_its_digests_are_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "a.clbundle")
    text = (path / "plan.txt").read_text()
    (path / "plan.txt").write_text(text.replace("structadmm-plan 3", "structadmm-plan 7"))
    with pytest.raises(UserError, match="format version 7, this program reads up to 3"):
        read_bundle(path)


def test_a_file_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.clbundle")
    (path / "extra.txt").write_text("?")
    with pytest.raises(UserError, match=r"holds extra\.txt"):
        read_bundle(path)


def test_a_resealed_bundle_with_a_wrong_sample_shape_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.clbundle")
    np.save(path / "input_0.npy", np.ones((4, 1), np.float32))
    seal(path)
    with pytest.raises(UserError, match=r"expected float32 \[1, 4\], got float32 \[4, 1\]"):
        read_bundle(path)


def test_a_resealed_bundle_with_a_pickled_sample_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.clbundle")
    np.save(path / "input_0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    seal(path)
    with pytest.raises(UserError, match="is not an array"):
        read_bundle(path)


def test_a_constant_outside_the_weights_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.clbundle")
    edit(path, "plan.txt", lambda data: data.replace(b"constant 1 16 128", b"constant 1 17 128"))
    with pytest.raises(UserError, match=r"constant 1 lies outside weights\.bin"):
        read_bundle(path)


def test_a_program_outside_the_kernels_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.clbundle")
    edit(path, "plan.txt", lambda data: data.replace(b"program 0 0 100", b"program 0 1 100"))
    with pytest.raises(UserError, match=r"program 0 lies outside kernels\.cl"):
        read_bundle(path)


def test_a_directory_that_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious.clbundle"
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not a bundle"):
        write(path)
    assert (path / "thesis.txt").read_text() == "years of work"


def test_a_bundle_needs_its_ending(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.clbundle"):
        write(tmp_path / "a.bundle")


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    from structadmm.errors import InvariantError

    plan = small_plan()
    outside = LaunchPlan(**{**plan.__dict__, "memory": (plan.memory[0], Constant(4096, 128), *plan.memory[2:])})
    with pytest.raises(InvariantError, match="cannot be read"):
        write(tmp_path / "a.clbundle", outside)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is none"):
        read_bundle(tmp_path / "a.clbundle")


def test_the_manifest_must_be_json_with_its_schema(tmp_path: Path) -> None:
    path = write(tmp_path / "a.clbundle")
    (path / "manifest.json").write_text(json.dumps({"schema": 99}))
    seal(path)
    with pytest.raises(UserError, match="has schema 99"):
        read_bundle(path)


def test_a_copy_is_as_good_as_the_original(tmp_path: Path) -> None:
    path = write(tmp_path / "a.clbundle")
    copy = shutil.copytree(path, tmp_path / "b.clbundle")
    assert write_plan(read_bundle(copy).plan) == write_plan(read_bundle(path).plan)


def test_options_are_kept(tmp_path: Path) -> None:
    plan = small_plan()
    other = LaunchPlan(**{**plan.__dict__, "programs": (Program(0, 100, ("-DA=1", "-cl-mad-enable")),)})
    assert read_bundle(write(tmp_path / "a.clbundle", other)).plan.programs[0].options == ("-DA=1", "-cl-mad-enable")
