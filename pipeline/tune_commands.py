"""`structadmm tune` and what goes with it: `tuned show`, `tuned merge`, `layer-costs`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structadmm.errors import UserError

if TYPE_CHECKING:
    from pipeline.settle import Settled
    from structadmm.progress import Reporter
    from tvm_build.gpu import Gpu
    from tvm_build.precision import Precision
    from tvm_build.tuning.measurer import DeviceFacts, Measurer
    from tvm_build.tuning.session import SessionResult

Network = Annotated[
    Path, typer.Argument(metavar="MODEL.onnx|RUN", help="A network, or a run directory with both of its networks.")
]
Device = Annotated[str, typer.Option("--device", help="As `structadmm devices` lists them; not with --tracker.")]
Target = Annotated[str | None, typer.Option("--target", help="The GPU to tune for; by default what the device is.")]
OneDevice = Annotated[str, typer.Option("--device", help="As `structadmm devices` lists them.")]
CompiledFor = Annotated[str | None, typer.Option("--target", help="The GPU to compile for; by default the device's.")]
DType = Annotated[str, typer.Option("--dtype", help="float32, float16, or float16_float32 (stored, computed).")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON.")]

TRIALS_PER_LAYER = 64


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(tune)
    app.command("layer-costs")(layer_costs)
    tuned = typer.Typer(no_args_is_help=True)
    tuned.callback(help="Look into tuning databases, and join them.")(lambda: None)
    tuned.command("settle")(settle_command)
    tuned.command()(show)
    tuned.command()(merge)
    app.add_typer(tuned, name="tuned")


def tune(
    model: Network,
    *,
    out: Annotated[Path, typer.Option("--out", help="The database, DB.jsonl; continued if it is there.")],
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="In all sessions together; 64 for each distinct layer by default."),
    ] = None,
    device: Device = "local",
    tracker: Annotated[
        str | None, typer.Option("--tracker", metavar="HOST:PORT", help="Use all devices of a key at this RPC tracker.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="The devices' key at the tracker.")] = None,
    target: Target = None,
    dtype: DType = "float32",
    runs: Annotated[int, typer.Option("--runs", min=1, max=1000, help="Timed runs of each candidate.")] = 40,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0.1, help="After which a candidate is killed.")] = 60.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the search's chances.")] = 0,
    settle: Annotated[
        bool, typer.Option("--settle/--no-settle", help="At the end, compare what was found within the network.")
    ] = True,
    as_json: JsonOutput = False,
) -> None:
    """Find fast schedules for a network's layers by measuring candidates. Ctrl-C keeps everything."""
    from device.candidates import Trial
    from pipeline.progress import console_reporter
    from structadmm.progress import SilentReporter
    from tvm_build.precision import precision_by_name
    from tvm_build.tuning.session import REPEATS, run_session
    from tvm_build.tuning.tasks import extract_tasks, fused_network, weight_bytes

    reporter: Reporter = SilentReporter() if as_json else console_reporter()
    precision = precision_by_name(dtype)
    networks = _networks(model)
    trial = Trial(runs=runs, timeout_s=timeout_s)
    with _measurer(device, tracker, key, trial, reporter) as measurer:
        facts = measurer.device_facts()
        gpu = _gpu(facts, target)
        if dtype != "float32" and not facts.fp16:
            raise UserError(f"{facts.gpu} does not compute in half precision: tune with --dtype float32")
        fused = [fused_network(path, gpu, precision) for path in networks]
        tasks = extract_tasks(fused, gpu, precision)
        if not tasks:
            raise UserError(f"{model} has no layer whose schedule can be tuned: compile it without a database")
        layers = len({use.group for task in tasks for use in task.uses})
        wanted = TRIALS_PER_LAYER * layers if trials is None else trials
        reporter.say(f"{layers} distinct layers, {len(tasks)} launches, {wanted} trials, on {facts.key} ({facts.kind})")
        result = run_session(
            tasks,
            out,
            measurer,
            gpu=gpu,
            precision=precision,
            trials=wanted,
            reporter=reporter,
            seed=seed,
            network_bytes=max(weight_bytes(network, precision) for network in fused),
            repeats=REPEATS,
            runs=runs,
        )
        if not as_json:
            _print_session(result, out)
        settled = _settle_after(measurer, networks, out, gpu, precision, reporter) if settle else []
    if as_json:
        whole = [_settled_json(each) for each in settled]
        typer.echo(json.dumps(_session_json(result) | {"networks": whole}, indent=2))
    else:
        for each in settled:
            typer.echo(str(each))


def settle_command(
    model: Network,
    *,
    database: Annotated[Path, typer.Option("--db", metavar="DB", help="A tuning database with trials on the device.")],
    device: OneDevice = "local",
    target: CompiledFor = None,
    dtype: DType = "float32",
    as_json: JsonOutput = False,
) -> None:
    """Compare what a database has for a network's layers within the network, and keep in it what came out."""
    from device.candidates import LocalMeasurer
    from device.target import open_target
    from pipeline.progress import console_reporter
    from pipeline.settle import settle
    from structadmm.progress import SilentReporter
    from tvm_build.precision import precision_by_name

    reporter: Reporter = SilentReporter() if as_json else console_reporter()
    precision = precision_by_name(dtype)
    networks = _networks(model)
    measurer = LocalMeasurer(open_target(device, reporter))
    try:
        gpu = _gpu(measurer.device_facts(), target)
        found = settle(networks, database, measurer.target, gpu=gpu, precision=precision, reporter=reporter)
    finally:
        measurer.close()
    if as_json:
        typer.echo(json.dumps({"schema": 1, "networks": [_settled_json(each) for each in found]}, indent=2))
    else:
        for each in found:
            typer.echo(str(each))


def show(
    database: Annotated[Path, typer.Argument(metavar="DB", help="A tuning database.")],
    as_json: JsonOutput = False,
) -> None:
    """Show what a database holds: devices, layers, the best schedule of each, alone and within a network."""
    from pipeline.tables import print_table
    from tvm_build.tuning.summary import summarize

    rows = summarize(database)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "layers": rows}, indent=2))
        return
    print_table(
        (
            *("device", "dtype", "launch", "fastest alone", "fastest in a network", "computed as"),
            *("trials", "failed", "alone ms", "in a network ms"),
        ),
        [
            (
                row["device"],
                row["dtype"],
                row["layer"],
                row["schedule"],
                row["settled"],
                row["form"] or "",
                str(row["trials"]),
                str(row["failed"]),
                *("" if row[name] is None else f"{row[name]:.4f}" for name in ("best_ms", "settled_ms")),
            )
            for row in rows
        ],
        left=6,
    )


def merge(
    databases: Annotated[list[Path], typer.Argument(metavar="DB DB ...", help="Tuning databases.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Where to write; may be one of them.")],
) -> None:
    """Join databases: each trial once, the fastest result of what never was wrong or crashed."""
    from tvm_build.tuning.database import merge_databases

    count = merge_databases(databases, out)
    typer.echo(f"{out}: {count} trials of {len(databases)} databases")


def layer_costs(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx|RUN", help="The dense network, or a run of it.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="The table, as a latency target under train takes it.")],
    device: OneDevice = "local",
    target: CompiledFor = None,
    dtype: DType = "float32",
    tuned: Annotated[Path | None, typer.Option("--tuned", help="A tuning database to take schedules from.")] = None,
    points: Annotated[int, typer.Option("--points", min=2, max=8, help="Grid points along filters and inputs.")] = 4,
    runs: Annotated[int, typer.Option("--runs", min=1, max=1000, help="Timed runs of each point.")] = 20,
) -> None:
    """Measure what each layer costs as a function of its kept filters, inputs and columns."""
    from device.candidates import facts_of_target
    from device.runner_client import Runner
    from device.target import open_target
    from pipeline.progress import console_reporter
    from structadmm.files import refuse_unwritable, write_json
    from tvm_build.compile import compile_onnx
    from tvm_build.import_onnx import import_onnx
    from tvm_build.precision import precision_by_name
    from tvm_build.recognize import recognize
    from tvm_build.tuning.database import network_digest
    from tvm_build.tuning.layer_costs import costs_table, layer_grids
    from tvm_build.tuning.tasks import weight_bytes
    from tvm_build.tuning.tuned import load_tuned

    refuse_unwritable(out)
    reporter = console_reporter()
    opened = open_target(device, reporter)
    try:
        runner = Runner(opened, use_program_cache=False)
        facts = facts_of_target(runner)
        gpu = _gpu(facts, target)
        precision = precision_by_name(dtype)
        path = _networks(model)[0]
        network = recognize(import_onnx(path))
        grids = layer_grids(network, points)
        chosen = None
        if tuned is not None:
            chosen = load_tuned(tuned, target=gpu.name, dtype=dtype).for_network(network_digest(path))
            chosen = chosen.among_weights(weight_bytes(network, precision))
        source = f"{facts.gpu}, driver {facts.driver}, {dtype} ({facts.kind} figures)"

        def profile(bundle: Path) -> list[float]:
            return [launch.min_ms for launch in runner.profile(bundle, runs=runs).launches]

        with tempfile.TemporaryDirectory(prefix="structadmm-costs-") as scratch:
            bundle = Path(scratch) / "whole.clbundle"
            compile_onnx(path, bundle, target=gpu.name, dtype=dtype, tuned=tuned)
            launch_ms = runner.bench([bundle], runs=2, launch_runs=runs).bundles[0].launch_ms
        assert launch_ms is not None  # there were launch runs
        table = costs_table(
            grids, gpu, precision, chosen, profile, whole_ms=launch_ms.min, source=source, reporter=reporter
        )
    finally:
        opened.close()
    write_json(out, table)
    typer.echo(f"{out}: {len(table['layers'])} layers measured on {source}")


@contextmanager
def _measurer(device: str, tracker: str | None, key: str | None, trial: Any, reporter: Reporter) -> Iterator[Measurer]:
    """The devices of a tracker, or one of this machine's own."""
    if (tracker is None) != (key is None):
        raise UserError("--tracker and --key go together: give both, or neither for --device")
    measurer: Measurer
    if tracker is not None and key is not None:
        from device.rpc.address import parse_address
        from device.rpc.measurer import RpcMeasurer

        if device != "local":
            raise UserError(f"--device {device} and --tracker {tracker}: give one of them")
        measurer = RpcMeasurer(parse_address(tracker), key, trial=trial, reporter=reporter)
    else:
        from device.candidates import LocalMeasurer
        from device.target import open_target

        measurer = LocalMeasurer(open_target(device, reporter), trial)
    try:
        yield measurer
    finally:
        measurer.close()


def _settle_after(
    measurer: Measurer, networks: list[Path], database: Path, gpu: Gpu, precision: Precision, reporter: Reporter
) -> list[Settled]:
    """What `tuned settle` does, where one device has all trials; several phones would be held against each other."""
    from device.candidates import LocalMeasurer
    from pipeline.settle import settle

    if not isinstance(measurer, LocalMeasurer):
        reporter.say("to compare the best of each layer within the network, on one of the devices: `tuned settle`")
        return []
    return settle(networks, database, measurer.target, gpu=gpu, precision=precision, reporter=reporter)


def _settled_json(settled: Settled) -> dict[str, Any]:
    speed_up = settled.speed_up
    return {
        "network": settled.network.name,
        "compared": settled.compared,
        "untuned_ms": settled.untuned_ms,
        "tuned_ms": settled.tuned_ms,
        "speed_up": None if speed_up is None else {"median": speed_up.median, "ci95": list(speed_up.ci95)},
        "stays_untuned": settled.stays_untuned,
        "failure": settled.failure,
        "kind": settled.kind,
    }


def _networks(model: Path) -> list[Path]:
    """The ONNX files that a user means."""
    if model.is_dir():
        found = [model / "export" / f"{name}.onnx" for name in ("baseline", "pruned")]
        if missing := [path for path in found if not path.is_file()]:
            raise UserError(f"{missing[0]} does not exist: `structadmm export {model}` writes it")
        return found
    return [model]


def _gpu(facts: DeviceFacts, target: str | None) -> Gpu:
    from tvm_build.gpu import gpu_by_name

    name = target or facts.target
    if name is None:
        raise UserError(f"cannot tell which GPU {facts.gpu!r} is: name it with --target")
    return gpu_by_name(name)


def _session_json(result: SessionResult) -> dict[str, Any]:
    from tvm_build.tuning.schedules import describe_schedule

    return {
        "schema": 1,
        "device": result.device.model_dump(mode="json"),
        "known_trials": result.known_trials,
        "new_trials": result.new_trials,
        "statuses": result.statuses,
        "default_ms": result.default_ms,
        "curve_ms": list(result.curve_ms),
        "forms": [
            {"layers": list(found.layers), "form": found.form, "forms_ms": dict(found.forms_ms)}
            for found in result.layers
        ],
        "layers": [
            {
                "form": task.task.forms,
                "layers": list(task.task.layers),
                "trials": task.trials,
                "default_ms": task.default_ms,
                "best_ms": task.best_ms,
                "schedule": None if task.best is None else describe_schedule(task.best),
            }
            for task in result.tasks
        ],
    }


def _print_session(result: SessionResult, out: Path) -> None:
    from pipeline.tables import print_table
    from tvm_build.explain import describe

    kind = result.device.kind
    print_table(
        ("layers", "part of", "schedule", "trials", f"untuned ms ({kind})", f"best ms ({kind})", "ratio"),
        [
            (
                ", ".join(task.task.layers[:2]) + (f" and {task.task.count - 2} more" if task.task.count > 2 else ""),
                task.task.forms,
                "" if task.best is None else describe(task.best),
                str(task.trials),
                "" if task.default_ms is None else f"{task.default_ms:.4f}",
                "" if task.best_ms is None else f"{task.best_ms:.4f}",
                "" if task.default_ms is None or task.best_ms is None else f"{task.default_ms / task.best_ms:.2f}",
            )
            for task in result.tasks
        ],
        left=3,
    )
    for found in result.layers:
        if len(found.forms_ms) > 1:
            times = ", ".join(
                f"{form} {ms:.4f}" for form, ms in sorted(found.forms_ms.items(), key=lambda item: item[1])
            )
            typer.echo(f"{', '.join(found.layers)}: {times} ms")
    failed = {status: count for status, count in result.statuses.items() if status != "ok"}
    failures = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in sorted(failed.items()))
    typer.echo(
        f"{out}: {result.new_trials} new trials, {result.known_trials} from earlier sessions"
        + (f"; of the new ones {failures}" if failures else "")
    )
