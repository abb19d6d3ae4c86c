"""Tuning on a real OpenCL device of this machine, with candidates that misbehave in every way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

import tvm_build.tuning.session
from device.candidates import LocalMeasurer, Trial
from device.runner_client import Runner
from device.target import open_target
from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from tests.compile.onnx_models import conv, save, weights
from tvm_build.compile import compile_onnx
from tvm_build.emit import OpenClKernel, emit_opencl
from tvm_build.gpu import gpu_by_name
from tvm_build.kernels import build_kernel, default_schedule
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator, with_images
from tvm_build.precision import FLOAT32, PRECISIONS, Precision
from tvm_build.tuning.candidate_bundle import guard_bytes, write_candidate_bundle
from tvm_build.tuning.database import TrialRecord, read_database
from tvm_build.tuning.expected import task_data
from tvm_build.tuning.measurer import TIMED_LAYER, CandidateOutcome, CandidateTimes
from tvm_build.tuning.schedules import describe_schedule
from tvm_build.tuning.session import run_session
from tvm_build.tuning.summary import summarize
from tvm_build.tuning.task_key import describe_operator
from tvm_build.tuning.tasks import extract_tasks, fused_network
from tvm_build.winograd import parts as winograd_parts

CPU = gpu_by_name("opencl-cpu")
# A candidate that hangs costs this long; the others get all the time they need on a busy machine.
HANG_TIMEOUT_S = 4.0

SABOTAGE = {
    "fast and wrong": "for (int i = 0; i < {floats}; ++i) ((__global float*)output_ptr)[i] = 0.5f; return;",
    "unwritten": "return;",
    "not a number": "((__global float*)output_ptr)[0] = NAN; return;",
    "below its output": "((__global float*)output_ptr)[-1] = 0.0f;",
    "above its output": "((__global float*)output_ptr)[{floats} + {guard} / 4 - 1] = 0.0f;",
    "no OpenCL": "this is no OpenCL;",
    "crash": "*(volatile __global int*)(8) = 1;",
}
HANG = "for (volatile int i = 0; i < 1;) {}"


def sabotaged(kernel: OpenClKernel, floats: int, statement: str) -> OpenClKernel:
    """The kernel with a statement at its beginning."""
    statement = statement.replace("{floats}", str(floats)).replace("{guard}", str(guard_bytes(4 * floats)))
    head, body = kernel.source.split("{", 1)
    return replace(kernel, source=f"{head}{{ {statement} {body}")


@pytest.fixture(scope="module")
def measurer() -> Iterator[LocalMeasurer]:
    found = LocalMeasurer(open_target("local"), Trial(runs=3, warmup_runs=1, timeout_s=300))
    yield found
    found.close()


def write(
    path: Path,
    op: Operator,
    *,
    schedule: Any = None,
    precision: Precision = FLOAT32,
    target: str = "opencl-cpu",
    change: Callable[[OpenClKernel], OpenClKernel] = lambda kernel: kernel,
    network_bytes: int = 0,
) -> Path:
    gpu = gpu_by_name(target)
    data = task_data(op)
    built = build_kernel(op, data.constants, gpu, schedule, precision)
    kernel = change(emit_opencl(built.func))
    write_candidate_bundle(path, built, kernel, data, target, precision, network_bytes=network_bytes)
    return path


def outcomes(measurer: LocalMeasurer, bundles: list[Path]) -> list[CandidateOutcome]:
    found = dict(measurer.measure(bundles))
    return [found[index] for index in range(len(bundles))]


def test_right_candidates_of_every_kind_pass_their_proof(measurer: LocalMeasurer, tmp_path: Path) -> None:
    conv = Conv2d(1, 10, 6, 7, 9, (3, 3), padding=(1, 1, 1, 1), activation="relu", has_residual=True)
    joined = Conv2d(1, 8, 6, 6, 8, (3, 3), padding=(1, 1, 1, 1), shortcut=Conv2d(1, 5, 6, 6, 8, (1, 1)))
    tiles, product, sums = winograd_parts(replace(conv, in_width=8), 2).launches
    sparse = Conv2d(1, 8, 6, 6, 12, (3, 3), padding=(1, 1, 1, 1), columns=tuple(range(0, 72, 2)))
    imaged = with_images(conv, ["input0", "output", "residual"])
    cases: list[tuple[Operator, Precision, str]] = [
        (conv, FLOAT32, "opencl-cpu"),
        (joined, FLOAT32, "opencl-cpu"),
        (sparse, FLOAT32, "opencl-cpu"),
        (tiles, FLOAT32, "opencl-cpu"),
        (product, FLOAT32, "opencl-cpu"),
        (sums, FLOAT32, "opencl-cpu"),
        (with_images(tiles, ["input0", "output"]), FLOAT32, "adreno-640"),
        (with_images(sums, ["input0", "output", "residual"]), FLOAT32, "adreno-640"),
        (Dense(1, 37, 10, activation="silu"), FLOAT32, "opencl-cpu"),
        (Dense(1, 24, 10, input_is_c4=True, pooled_pixels=9), FLOAT32, "adreno-640"),
        (GlobalAverage(1, 6, 5, 5), FLOAT32, "adreno-640"),
        (imaged, FLOAT32, "adreno-640"),
        (with_images(conv, (), ["input0", "residual"]), FLOAT32, "adreno-640"),
    ]
    if measurer.device_facts().fp16:
        # An input of eight bytes is smaller than what the proof reads at a time.
        squeezed = Conv2d(1, 4, 1, 1, 8, (1, 1))
        cases.append((squeezed, PRECISIONS["float16"], "opencl-cpu"))
        cases += [(conv, PRECISIONS["float16"], "opencl-cpu"), (imaged, PRECISIONS["float16"], "adreno-640")]
    bundles = [
        write(tmp_path / f"{number}.clbundle", op, precision=precision, target=target)
        for number, (op, precision, target) in enumerate(cases)
    ]
    for case, outcome in zip(cases, outcomes(measurer, bundles), strict=True):
        assert outcome.status == "ok", (case, outcome.message)
        assert outcome.times is not None
        assert 0 < outcome.times.min_ms <= outcome.times.median_ms <= outcome.times.p90_ms


@pytest.mark.parametrize(
    ("images", "views", "read"),
    [
        ((), (), "proof_read"),
        (("input0", "output", "residual"), (), "proof_read_image"),
        ((), ("input0", "residual"), "proof_read_view"),
    ],
    ids=["buffers", "images", "images of buffers"],
)
def test_between_two_runs_the_rest_of_the_network_and_the_inputs_are_read(
    measurer: LocalMeasurer, images: tuple[str, ...], views: tuple[str, ...], read: str, tmp_path: Path
) -> None:
    op = with_images(Conv2d(1, 10, 6, 7, 9, (3, 3), padding=(1, 1, 1, 1), has_residual=True), images, views)
    target = "adreno-640" if images or views else "opencl-cpu"
    bundle = write(tmp_path / "a.clbundle", op, target=target, network_bytes=1 << 20)
    (outcome,) = outcomes(measurer, [bundle])
    assert outcome.status == "ok", outcome.message
    launches = measurer.runner.profile(bundle, runs=1).launches
    kernels = [launch.kernel for launch in launches]
    reads = [kernel for kernel in kernels if kernel.startswith("proof_read")]
    assert reads == ["proof_read", read, read]
    timed = [launch.layer for launch in launches].index(TIMED_LAYER)
    assert kernels[timed - 2 : timed] == reads[1:]
    # A network that is no more than this layer leaves its weights where they are.
    alone = write(tmp_path / "b.clbundle", op, target=target, network_bytes=4 * 9 * 10 * 9)
    assert not any(launch.kernel.startswith("proof_read") for launch in measurer.runner.profile(alone, runs=1).launches)


def test_an_image_that_was_not_written_is_found(measurer: LocalMeasurer, tmp_path: Path) -> None:
    op = with_images(Conv2d(1, 4, 4, 4, 4, (1, 1)), ["output"])
    bundle = write(
        tmp_path / "a.clbundle", op, target="adreno-640", change=lambda kernel: sabotaged(kernel, 64, "return;")
    )
    (outcome,) = outcomes(measurer, [bundle])
    assert outcome.status == "wrong"


def test_a_hanging_candidate_is_killed_and_the_next_one_runs(tmp_path: Path) -> None:
    op = Dense(1, 16, 8)
    impatient = LocalMeasurer(open_target("local"), Trial(runs=3, timeout_s=HANG_TIMEOUT_S))
    try:
        bundle = write(tmp_path / "a.clbundle", op, change=lambda kernel: sabotaged(kernel, 8, HANG))
        (outcome,) = outcomes(impatient, [bundle])
    finally:
        impatient.close()
    assert outcome.status == "timed_out"
    assert "killed" in outcome.message


def test_a_session_survives_every_kind_of_bad_candidate_and_tunes_a_right_network(
    measurer: LocalMeasurer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        conv("a", "x", "y", pads=[1, 1, 1, 1], bias=True),
        conv("b", "y", "z", pads=[1, 1, 1, 1], bias=True),
    ]
    constants = {
        "a.weight": weights(16, 8, 3, 3),
        "a.bias": weights(16),
        "b.weight": weights(8, 16, 3, 3, seed=1),
        "b.bias": weights(8),
    }
    model = save(tmp_path / "model.onnx", nodes, {"x": [1, 8, 8, 8]}, ["z"], constants)
    (first,) = (
        task
        for task in extract_tasks([fused_network(model, CPU, FLOAT32)], CPU, FLOAT32)
        if (task.layers, task.forms) == (("a",), "direct")
    )
    crimes = list(SABOTAGE.values())
    floats = 16 * 8 * 8

    def emit(func: Any) -> OpenClKernel:
        kernel = emit_opencl(func)
        return sabotaged(kernel, floats, crimes.pop()) if crimes else kernel

    monkeypatch.setattr(tvm_build.tuning.session, "emit_opencl", emit)
    database = tmp_path / "db.jsonl"
    result = run_session([first], database, measurer, gpu=CPU, precision=FLOAT32, trials=12, reporter=SilentReporter())
    bad = len(SABOTAGE)
    assert [record.status for record in read_database(database)[bad:]] == ["ok"] * (12 - bad)
    by_crime = dict(zip(reversed(SABOTAGE), read_database(database), strict=False))
    assert {crime: record.status for crime, record in by_crime.items()} == {
        "fast and wrong": "wrong",
        "unwritten": "wrong",
        "not a number": "wrong",
        "below its output": "wrong",
        "above its output": "wrong",
        "no OpenCL": "build_failed",
        "crash": "crashed",
    }
    assert "written_outside" in by_crime["below its output"].message
    assert "written_outside" in by_crime["above its output"].message
    assert result.tasks[0].best is not None

    summary = compile_onnx(model, tmp_path / "net.clbundle", target="opencl-cpu", tuned=database)
    assert summary.tuned is not None
    assert (summary.tuned.tuned, "b" in summary.tuned.untuned) == (("a",), True)
    launches = {launch.layer: launch for launch in summary.explanation.launches if launch.kernel.startswith("conv")}
    assert launches["a"].measured_us is not None
    assert launches["b"].measured_us is None
    assert Runner(measurer.target).check(tmp_path / "net.clbundle").passed


@pytest.mark.parametrize("winner", ["direct", "Winograd F(2, 3)", "Winograd F(4, 3)"])
def test_the_form_that_was_fastest_is_compiled_and_named(measurer: LocalMeasurer, winner: str, tmp_path: Path) -> None:
    """A residual block whose second convolution takes the shortcut's into its own launch, unless it is Winograd's."""
    nodes = [
        conv("a", "x", "t", pads=[1, 1, 1, 1], bias=True),
        helper.make_node("Relu", ["t"], ["u"], name="relu"),
        conv("b", "u", "v", pads=[1, 1, 1, 1], bias=True),
        conv("s", "x", "w", bias=True),
        helper.make_node("Add", ["v", "w"], ["y"], name="add"),
    ]
    constants = {"a.weight": weights(12, 8, 3, 3), "b.weight": weights(12, 12, 3, 3), "s.weight": weights(12, 8, 1, 1)}
    constants |= {f"{name}.bias": weights(12, seed=seed) for seed, name in enumerate("abs")}
    model = save(tmp_path / "model.onnx", nodes, {"x": [1, 8, 10, 9]}, ["y"], constants)
    tasks = extract_tasks([fused_network(model, CPU, FLOAT32)], CPU, FLOAT32)
    assert {use.form for task in tasks for use in task.uses} == {"direct", "Winograd F(2, 3)", "Winograd F(4, 3)"}
    database = tmp_path / "db.jsonl"
    times_ms = {task.key: 1.0 if any(use.form == winner for use in task.uses) else 10.0 for task in tasks}
    database.write_bytes(b"".join(made_up_record(measurer, task.op, times_ms[task.key]).line() for task in tasks))

    summary = compile_onnx(model, tmp_path / "net.clbundle", target="opencl-cpu", tuned=database)
    assert summary.tuned is not None
    extra = {"b:tiles", "b:shortcut", "b:sums", "a:tiles", "a:sums"} if winner != "direct" else set()
    assert set(summary.tuned.tuned) == {"a", "b", *extra}
    assert set(summary.tuned.forms) == ({"a", "b"} if winner != "direct" else set())
    assert set(summary.tuned.forms.values()) <= {winner}
    assert Runner(measurer.target).check(tmp_path / "net.clbundle").passed
    shown = [row for row in summarize(database) if row["form"] is not None]
    assert {(row["form"], tuple(sorted(row["forms_ms"]))) for row in shown} == {
        (winner, ("Winograd F(2, 3)", "Winograd F(4, 3)", "direct"))
    }


def made_up_record(measurer: LocalMeasurer, op: Operator, ms: float) -> TrialRecord:
    return TrialRecord(
        device=measurer.device_facts(),
        target="opencl-cpu",
        dtype="float32",
        task=describe_operator(op),
        schedule=describe_schedule(default_schedule(op, CPU)),
        status="ok",
        times=CandidateTimes(min_ms=ms, median_ms=ms, p90_ms=ms),
    )


def test_a_database_of_another_gpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    from tests.unit.tvm_build.test_tuning_database import record

    model = save(
        tmp_path / "model.onnx",
        [conv("a", "x", "y")],
        {"x": [1, 4, 4, 4]},
        ["y"],
        {"a.weight": weights(4, 4, 1, 1)},
    )
    (tmp_path / "db.jsonl").write_bytes(record().line())
    with pytest.raises(UserError, match="was tuned for adreno-640, expected opencl-cpu"):
        compile_onnx(model, tmp_path / "net.clbundle", target="opencl-cpu", tuned=tmp_path / "db.jsonl")
    assert not (tmp_path / "net.clbundle").exists()


def test_the_guard_edit_needs_one_output_pointer() -> None:
    from structadmm.errors import InvariantError
    from tvm_build.tuning.candidate_bundle import guarded

    kernel = OpenClKernel("k", "__kernel void k(__global float4* restrict output_ptr) {\n}\n", ("output",), (1,), (1,))
    assert re.search(r"\{\s*output_ptr \+= 4;", guarded(kernel, "output", 64))
    with pytest.raises(InvariantError, match="one parameter"):
        guarded(replace(kernel, source=kernel.source.replace("output_ptr", "out_ptr")), "output", 64)
    with pytest.raises(InvariantError, match="no multiple"):
        guarded(kernel, "output", 24)
