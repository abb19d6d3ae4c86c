"""`NAME.clbundle/`: written whole or not at all, read with proof. docs/bundle-format.md is the authority."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from structadmm.errors import InvariantError, UserError
from structadmm.files import names_in_errors, read_json, sha256_file
from tvm_build.launch_plan import Constant, ConstantImage2d, Endpoint, LaunchPlan
from tvm_build.plan_text import read_plan, write_plan

MANIFEST_SCHEMA = 1
_SUM_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.+-]{1,255})")


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and found whole.

    Attributes:
        path: its directory.
        plan: plan.txt.
        manifest: manifest.json.
        kernels: kernels.cl.
    """

    path: Path
    plan: LaunchPlan
    manifest: Mapping[str, Any]
    kernels: str


def write_bundle(
    path: Path,
    *,
    plan: LaunchPlan,
    kernels: bytes,
    weights: bytes,
    manifest: Mapping[str, Any],
    inputs: Sequence[NDArray[np.float32]],
    outputs: Sequence[NDArray[np.float32]],
) -> Bundle:
    """Write a bundle into the directory `path`, replacing one that is there; equal content gives equal bytes.

    Args:
        path: must end in `.clbundle`.
        plan: with a sample line for every array of `inputs` and `outputs`.
        kernels: kernels.cl.
        weights: weights.bin.
        manifest: as documented; must be JSON without NaN.
        inputs: sample inputs, in the plan's order.
        outputs: what is expected for them.

    Raises:
        UserError: `path` has another ending, or is something other than a bundle.
        InvariantError: the plan breaks a rule of the format.
        OSError: it cannot be written.
    """
    check_destination(path)
    files: dict[str, bytes] = {
        "plan.txt": write_plan(plan).encode("ascii"),
        "kernels.cl": kernels,
        "weights.bin": weights,
        "manifest.json": (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode(),
    }
    for sample, array in zip(plan.sample_inputs, inputs, strict=True):
        files[sample.file] = _npy(array)
    for expected, array in zip(plan.sample_outputs, outputs, strict=True):
        files[expected.file] = _npy(array)
    files["SHA256SUMS"] = "".join(
        f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)
    ).encode()
    with names_in_errors(path):
        _write_folder(path, files)
    return read_bundle(path)


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        partial.chmod(0o755)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        try:
            read_bundle(partial)
        except UserError as error:
            raise InvariantError(f"wrote a bundle that cannot be read: {error}") from error
        if path.exists():
            # A directory cannot be renamed over another; the old one steps aside first and goes last.
            replaced = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            path.rename(replaced / path.name)
            partial.rename(path)
            shutil.rmtree(replaced)
        else:
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_destination(path: Path) -> None:
    """Refuse a path that must not become a bundle.

    Raises:
        UserError: it does not end in `.clbundle`, or something is there that is not a bundle.
    """
    if path.suffix != ".clbundle":
        raise UserError(f"expected a path that ends in .clbundle, got {path}: rename it")
    if path.exists() and not (path.is_dir() and (path / "SHA256SUMS").is_file()):
        raise UserError(f"{path} exists and is not a bundle: remove it or choose another path")


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle: version, digests, plan, ranges, samples.

    Raises:
        UserError: it is absent, newer than this program, incomplete, changed or contradicts itself.
    """
    if not path.is_dir():
        raise UserError(f"{path}: expected a bundle directory, there is none: build it with `structadmm compile`")
    plan_path = path / "plan.txt"
    if not plan_path.is_file():
        raise UserError(f"{path} has no plan.txt: build the bundle again")
    text = _ascii(plan_path)
    _refuse_newer(text)
    _verify_digests(path)
    plan = read_plan(text)
    kernels = _ascii(path / "kernels.cl")
    for number, program in enumerate(plan.programs):
        if program.offset + program.size > len(kernels):
            raise UserError(f"{path}: program {number} lies outside kernels.cl: build the bundle again")
    weights_size = (path / "weights.bin").stat().st_size
    for number, memory in enumerate(plan.memory):
        if isinstance(memory, Constant | ConstantImage2d) and memory.offset + memory.size > weights_size:
            raise UserError(f"{path}: constant {number} lies outside weights.bin: build the bundle again")
    for sample in plan.sample_inputs:
        _verify_sample(path / sample.file, plan.inputs[sample.index])
    for expected in plan.sample_outputs:
        _verify_sample(path / expected.file, plan.outputs[expected.index])
    manifest = read_json(path / "manifest.json", schema=MANIFEST_SCHEMA)
    return Bundle(path, plan, manifest, kernels)


def _ascii(path: Path) -> str:
    try:
        return path.read_bytes().decode("ascii")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not ASCII text: build the bundle again") from None


def _refuse_newer(text: str) -> None:
    # Before the digests: what a newer format lists in SHA256SUMS is for newer programs to know.
    match = re.match(r"structadmm-plan [0-9]{1,9}\n", text)
    if match is not None:
        try:
            read_plan(match[0])
        except UserError as error:
            if "format version" in str(error):
                raise


def _verify_digests(path: Path) -> None:
    sums = path / "SHA256SUMS"
    if not sums.is_file():
        raise UserError(f"{path} has no SHA256SUMS: build the bundle again")
    listed: dict[str, str] = {}
    text = _ascii(sums)
    for line in text.splitlines():
        match = _SUM_LINE.fullmatch(line)
        if match is None or not text.endswith("\n"):
            raise UserError(f"{sums}: expected lines of 64 hex digits, two spaces and a name: build the bundle again")
        listed[match[2]] = match[1]
    if list(listed) != sorted(listed) or len(listed) != len(text.splitlines()):
        raise UserError(f"{sums} is not sorted by name: build the bundle again")
    present = {item.name for item in path.iterdir()} - {"SHA256SUMS"}
    if missing := sorted({*listed, "plan.txt", "kernels.cl", "weights.bin", "manifest.json"} - present):
        raise UserError(f"{path} lacks {', '.join(missing)}: copy or build the bundle again")
    if extra := sorted(present - set(listed)):
        raise UserError(f"{path} holds {', '.join(extra)}, which SHA256SUMS does not list: remove it or build again")
    for name, digest in listed.items():
        if sha256_file(path / name) != digest:
            raise UserError(f"{path / name} does not match its SHA-256: the file was changed or cut off, copy it again")


def _verify_sample(path: Path, endpoint: Endpoint) -> None:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not an array ({error}): build the bundle again") from None
    if array.dtype != np.float32 or array.shape != endpoint.shape:
        raise UserError(
            f"{path}: expected float32 {list(endpoint.shape)}, got {array.dtype} {list(array.shape)}: build it again"
        )
