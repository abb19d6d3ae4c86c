"""The commands that work on a model or a bundle: `inspect`, `compile`, `exec`, `bench`, `profile`."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structadmm.errors import UserError
from structadmm.files import refuse_unwritable
from tvm_build.gpu import GPU_NAMES

if TYPE_CHECKING:
    from device.runner_client import Runner
    from device.target import Target
    from tvm_build.explain import Explanation

Device = Annotated[str, typer.Option("--device", help="As `structadmm devices` lists them; `local` is the first one.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Bundle = Annotated[Path, typer.Argument(metavar="X.clbundle", help="A bundle.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(inspect)
    app.command("compile")(compile_model)
    app.command("exec")(execute)
    app.command()(bench)
    app.command()(profile)


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A built-in model's name, or module:callable.")],
    *,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", help="The input's shape, batch first; again for each further input.  [1,3,32,32]"),
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Its weights, .safetensors or .pt.")] = None,
    as_json: JsonOutput = False,
) -> None:
    """Show a network's layers: sizes, what of them is zero, what shrinking would remove, and why the rest cannot go."""
    import dataclasses

    from export.foreign import build_network, example_inputs
    from export.inspect_network import inspect_network
    from structadmm.graph import capture

    examples = example_inputs(shape or ["1,3,32,32"])
    report = inspect_network(*capture(build_network(model, weights), examples))
    if as_json:
        _print_json({"schema": 1, **dataclasses.asdict(report)})
    else:
        typer.echo(report.table())


def compile_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX network of fixed shapes.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="The bundle to write, NAME.clbundle.")],
    target: Annotated[
        str, typer.Option("--target", help=f"The GPU that kernels are chosen for: {GPU_NAMES}.")
    ] = "adreno-640",
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, float16, or float16_float32 (stored, computed).")
    ] = "float32",
    schedules: Annotated[
        str, typer.Option("--schedules", help="`structadmm`, or `upstream` for TVM's own, to compare with.")
    ] = "structadmm",
    memory: Annotated[
        str, typer.Option("--memory", help="auto (images where they pay), buffer, or image (wherever they fit).")
    ] = "auto",
    tuned: Annotated[
        Path | None, typer.Option("--tuned", metavar="DB", help="A tuning database to take schedules from.")
    ] = None,
    tuned_device: Annotated[
        str | None, typer.Option("--tuned-device", help="Part of a device's name, if the database has several.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what the cost model predicts for each launch, and why.")
    ] = False,
    as_json: JsonOutput = False,
) -> None:
    """Compile an ONNX network to a bundle that runs with an OpenCL driver and nothing else."""
    from pipeline.progress import console_reporter
    from structadmm.progress import SilentReporter
    from tvm_build.compile import compile_onnx
    from tvm_build.explain import caveat_of_tvm

    if schedules not in ("structadmm", "upstream"):
        raise UserError(f"--schedules {schedules}: expected structadmm or upstream")
    reporter = SilentReporter() if as_json else console_reporter()
    summary = compile_onnx(
        model,
        out,
        target=target,
        dtype=dtype,
        schedules=schedules,  # type: ignore[arg-type]  # checked above
        memory=memory,
        tuned=tuned,
        tuned_device=tuned_device,
        reporter=reporter,
    )
    if as_json:
        record = {key: str(value) if isinstance(value, Path) else value for key, value in vars(summary).items()}
        del record["lowered"]
        record["tuned"] = None if summary.tuned is None else summary.tuned.record()
        record["explanation"] = asdict(summary.explanation) | {"kind": "predicted"}
        if not explain:
            del record["explanation"]
        _print_json(record)
        return
    if explain:
        _print_explanation(summary.explanation)
    if summary.tuned is not None:
        typer.echo(f"{out}: {summary.tuned}")
    caveat = f"; {caveat_of_tvm(summary.tvm_launches)}" if summary.tvm_launches else ""
    typer.echo(
        f"{out}: {summary.launches} launches of {summary.kernels} kernels, {summary.macs:,} MACs, "
        f"{summary.weight_bytes / 1e6:.2f} MB of weights, {summary.activation_bytes / 1e6:.2f} MB of activations; "
        f"predicted {summary.predicted_ms:.2f} ms on {target} (a model's figure, not a measurement{caveat})"
    )


def _print_explanation(explanation: Explanation) -> None:
    from pipeline.tables import print_table

    headings = ("layer", "kernel", "schedule", "not in buffers", "bound by")
    figures = ("MFLOP", "kB", "MACs/load", "registers", "waves", "predicted us", "tuned us")
    print_table(
        headings + figures,
        (
            (
                launch.layer,
                launch.kernel,
                launch.schedule,
                "; ".join(filter(None, (launch.memory, *launch.fallbacks))),
                launch.bound_by or "",
                f"{launch.flops / 1e6:.2f}",
                f"{launch.bytes / 1e3:.1f}",
                "" if launch.macs_per_load is None else f"{launch.macs_per_load:.1f}",
                "" if launch.registers is None else str(launch.registers),
                "" if launch.waves is None else str(launch.waves),
                f"{launch.predicted_us:.1f}",
                "" if launch.measured_us is None else f"{launch.measured_us:.1f}",
            )
            for launch in explanation.launches
        ),
        left=len(headings),
    )
    typer.echo(explanation.total)


def execute(
    bundle: Bundle,
    *,
    inputs: Annotated[list[Path], typer.Option("--input", help="A .npy array; once for each input, in order.")],
    outputs: Annotated[list[Path], typer.Option("--output", help="Where to write; once for each output, in order.")],
    device: Device = "local",
) -> None:
    """Run a bundle once on arrays from .npy files."""
    arrays = [_load_array(path) for path in inputs]
    _check_arrays(bundle, inputs, arrays)
    for path in outputs:
        refuse_unwritable(path)
    with _runner(device) as runner:
        result = runner.run(bundle, arrays)
    if len(outputs) != len(result.outputs):
        raise UserError(f"{bundle} has {len(result.outputs)} outputs, {len(outputs)} --output given: give one for each")
    for path, array in zip(outputs, result.outputs, strict=True):
        _save_array(path, array)
        typer.echo(f"{path}: {array.dtype} {list(array.shape)}, from {result.session.name}")


def bench(
    bundles: Annotated[list[Path], typer.Argument(metavar="A.clbundle [B.clbundle ...]", help="Bundles to compare.")],
    *,
    device: Device = "local",
    runs: Annotated[int, typer.Option("--runs", min=1, help="Timed inferences of each bundle.")] = 200,
    warmup_ms: Annotated[int, typer.Option("--warmup-ms", min=0, help="Warm-up before them, at the least.")] = 500,
    as_json: JsonOutput = False,
) -> None:
    """Time bundles against each other, interleaved so that drift cancels. The others are set against the first one."""
    from results.statistics import paired_speed_up

    with _runner(device, quiet=as_json) as runner:
        before = runner.target.facts()
        result = runner.bench(bundles, runs=runs, warmup_ms=warmup_ms)
        kind = runner.target.kind
        warnings = _warnings(bundles, runner.target, result.session.type, before)
    first = result.bundles[0].total_samples_ms
    speed_ups = [paired_speed_up(first, times.total_samples_ms) for times in result.bundles]
    if as_json:
        _print_json(
            {
                "schema": 1,
                "device": result.session.model_dump(mode="json"),
                "kind": kind,
                "warnings": warnings,
                "bundles": [
                    times.model_dump(mode="json")
                    | {"bundle": str(path), "speedup": {"median": speed_up.median, "ci95": speed_up.ci95}}
                    for path, times, speed_up in zip(bundles, result.bundles, speed_ups, strict=True)
                ],
            }
        )
        return
    from pipeline.tables import print_table

    headings = (
        *(f"ms ({kind})", "for", "min", "p10", "median", "mean", "p90", "p99"),
        *("first run", "build", "speed-up (95 %)"),
    )
    rows = []
    for name, times, speed_up in zip(_distinct_names(bundles), result.bundles, speed_ups, strict=True):
        total = times.total_ms
        figures = (total.min, total.p10, total.median, total.mean, total.p90, total.p99)
        low, high = speed_up.ci95
        rows.append(
            (
                name,
                times.target,
                *(f"{figure:.3f}" for figure in figures),
                f"{times.first_run_ms:.1f}",
                f"{times.build_ms:.1f}",
                f"{speed_up.median:.2f} ({low:.2f} to {high:.2f})" if len(bundles) > 1 else "",
            )
        )
    print_table(headings, rows, left=2)
    session = result.session
    typer.echo(f"{runs} interleaved runs on {session.name}, driver {session.driver}")
    for warning in warnings:
        typer.echo(f"Warning: {warning}")


def profile(
    bundle: Bundle,
    *,
    device: Device = "local",
    runs: Annotated[int, typer.Option("--runs", min=1, help="Inferences behind each median.")] = 20,
    as_json: JsonOutput = False,
) -> None:
    """Time every launch of a bundle by the device's own clock, with the layer it belongs to."""
    with _runner(device, quiet=as_json) as runner:
        before = runner.target.facts()
        result = runner.profile(bundle, runs=runs)
        kind = runner.target.kind
        warnings = _warnings([bundle], runner.target, result.session.type, before)
    if as_json:
        _print_json(
            {
                "schema": 1,
                "device": result.session.model_dump(mode="json"),
                "kind": kind,
                "warnings": warnings,
                "profile": result.summary.model_dump(mode="json"),
                "launches": [launch.model_dump(mode="json") for launch in result.launches],
            }
        )
        return
    from pipeline.tables import print_table

    whole = sum(launch.median_ms for launch in result.launches) or 1.0
    print_table(
        ("layer", "kernel", f"median ms ({kind})", "share", "GFLOP/s", "GB/s"),
        (
            (
                launch.layer,
                launch.kernel,
                f"{launch.median_ms:.4f}",
                f"{100 * launch.median_ms / whole:.1f} %",
                "" if launch.gflops_per_s is None else f"{launch.gflops_per_s:.1f}",
                "" if launch.gbytes_per_s is None else f"{launch.gbytes_per_s:.1f}",
            )
            for launch in result.launches
        ),
        left=2,
    )
    total = result.summary.launch_sum_ms.median
    typer.echo(f"{total:.3f} ms in launches, gaps between them left out; {result.session.name}")
    for warning in warnings:
        typer.echo(f"Warning: {warning}")


def _warnings(bundles: list[Path], target: Target, opencl_type: str, before: Mapping[str, Any]) -> list[str]:
    """What a reader of the times must know: whose kernels these are, and who else used the processors."""
    from device.contention import contention_warning, others_share
    from device.stage import built_for, other_kernels_warnings

    share = others_share(before.get("processor_s"), target.facts().get("processor_s"))
    contended = contention_warning(share)
    return [*other_kernels_warnings(built_for(bundles), target, opencl_type), *([contended] if contended else [])]


def _distinct_names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    longest = max(map(len, parts))
    length = next((n for n in range(1, longest) if len({own[-n:] for own in parts}) == len(set(parts))), longest)
    return [str(Path(*own[-length:])) for own in parts]


@contextmanager
def _runner(device: str, *, quiet: bool = False) -> Iterator[Runner]:
    """A runner on the device, which is closed afterwards; what a phone asks for is told on standard error."""
    from device.runner_client import Runner
    from device.target import open_target
    from pipeline.progress import console_reporter

    target = open_target(device, None if quiet else console_reporter())
    try:
        yield Runner(target)
    finally:
        target.close()


def _check_arrays(bundle: Path, paths: list[Path], arrays: list[Any]) -> None:
    """Name the file that does not fit: the runner is given copies by other names."""
    from structadmm.files import read_json

    if not (bundle / "manifest.json").is_file():
        return  # what is wrong with it is the runner's to say
    expected = read_json(bundle / "manifest.json", schema=1)["inputs"]
    if len(arrays) != len(expected):
        names = ", ".join(entry["name"] for entry in expected)
        raise UserError(f"{bundle} has the inputs {names}, {len(arrays)} --input given: give one for each, in order")
    for path, array, entry in zip(paths, arrays, expected, strict=True):
        if list(array.shape) != entry["shape"] or str(array.dtype) != entry["dtype"]:
            raise UserError(
                f"--input {path} is {array.dtype} {list(array.shape)}, {bundle} takes {entry['dtype']} "
                f"{entry['shape']} as {entry['name']}: convert it"
            )


def _load_array(path: Path) -> Any:
    import numpy as np

    try:
        with path.open("rb") as stream:
            array = np.load(stream, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"--input {path}: no such file: give a .npy array") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"--input {path} is no .npy array ({error}): write it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"--input {path} holds several arrays ({', '.join(array.files)}): write one with numpy.save")
    return array


def _save_array(path: Path, array: Any) -> None:
    import numpy as np

    from structadmm.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
