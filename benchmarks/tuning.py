"""Tunes CIFAR ResNet-18 on an OpenCL device of this machine and measures what that makes of the whole network.

Writes into --out: the database, `results.json`, `table.md` and `curve.svg`. Interrupted, the same command goes on where
it stopped. On a quiet machine a trial takes about a second, 200 for each layer three quarters of an hour.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from host_record import quiet, record_options, write_record
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from device.candidates import LocalMeasurer, Trial
from device.runner_client import Runner
from device.target import open_target
from export.onnx_export import export_onnx
from pipeline.progress import console_reporter
from results.markdown import markdown_table
from results.statistics import paired_speed_up, spread
from structadmm.files import atomic_path
from structadmm.graph import capture
from train.models import build_model
from tvm_build.compile import compile_onnx
from tvm_build.explain import describe
from tvm_build.gpu import gpu_by_name
from tvm_build.launch_names import layer_of
from tvm_build.precision import FLOAT32
from tvm_build.tuning.session import REPEATS, SessionResult, run_session
from tvm_build.tuning.summary import layer_words
from tvm_build.tuning.task_key import describe_operator
from tvm_build.tuning.tasks import extract_tasks, fused_network, weight_bytes

TARGET = "opencl-cpu"
GOAL = 1.3


def write_network(path: Path, width: int) -> None:
    """CIFAR ResNet-18 with weights of seed 0."""
    torch.manual_seed(0)
    model = build_model("cifar_resnet18", {"width": width, "num_classes": 10, "in_channels": 3}).eval()
    graph, state = capture(model, (torch.zeros(1, 3, 32, 32),))
    with quiet():
        export_onnx(graph, state, path)


def tune(networks: list[Path], database: Path, measurer: LocalMeasurer, trials_per_layer: int) -> SessionResult:
    """A session over all layers that matter, or the rest of it."""
    gpu = gpu_by_name(TARGET)
    fused = [fused_network(path, gpu, FLOAT32) for path in networks]
    tasks = extract_tasks(fused, gpu, FLOAT32)
    groups = len({use.group for task in tasks for use in task.uses})
    return run_session(
        tasks,
        database,
        measurer,
        gpu=gpu,
        precision=FLOAT32,
        trials=trials_per_layer * groups,
        reporter=console_reporter(),
        network_bytes=weight_bytes(fused[0], FLOAT32),
        repeats=REPEATS,
    )


def compare(network: Path, database: Path, runner: Runner, scratch: Path, rounds: int) -> dict[str, Any]:
    """The network compiled with and without the database: checked, and timed against each other."""
    bundles = [scratch / "untuned.clbundle", scratch / "tuned.clbundle"]
    compile_onnx(network, bundles[0], target=TARGET)
    summary = compile_onnx(network, bundles[1], target=TARGET, tuned=database)
    checks = [runner.check(bundle).max_abs_error for bundle in bundles]
    untuned, tuned = runner.bench(bundles, runs=rounds, warmup_ms=2000).bundles
    layers_ms = in_network_ms(runner, bundles)
    speed_up = paired_speed_up(untuned.total_samples_ms, tuned.total_samples_ms)
    return {
        "rounds": rounds,
        "max_abs_error": {"untuned": checks[0], "tuned": checks[1]},
        "untuned_ms": vars(spread(untuned.total_samples_ms, "untuned")),
        "tuned_ms": vars(spread(tuned.total_samples_ms, "tuned")),
        "speed_up": {"median": speed_up.median, "ci95": list(speed_up.ci95), "goal": GOAL},
        "layers_ms": {layer: {"untuned": ms, "tuned": layers_ms[1][layer]} for layer, ms in layers_ms[0].items()},
        "tuned_layers": None if summary.tuned is None else summary.tuned.record(),
    }


def in_network_ms(runner: Runner, bundles: list[Path]) -> list[dict[str, float]]:
    """The fastest runs of each layer's launches within each network; the networks take turns."""
    fastest: list[dict[str, float]] = [{} for _ in bundles]
    for _ in range(8):
        for bundle, known in zip(bundles, fastest, strict=True):
            for launch in runner.profile(bundle, runs=20).launches:
                name = f"{launch.layer} {launch.kernel}"
                known[name] = min(launch.min_ms, known.get(name, launch.min_ms))
    found: list[dict[str, float]] = [{} for _ in bundles]
    for known, layers in zip(fastest, found, strict=True):
        for name, ms in known.items():
            layer = layer_of(name.split()[0])
            layers[layer] = layers.get(layer, 0.0) + ms
    return found


def layer_rows(result: SessionResult) -> list[dict[str, Any]]:
    """What was found for each distinct layer, and how each of its forms is scheduled."""
    rows = []
    for found in result.layers:
        launches: dict[str, list[dict[str, Any]]] = {form: [] for form in found.forms_ms}
        for task in result.tasks:
            for use in task.task.uses:
                if use.layers == found.layers and use.form in launches:
                    launch = {
                        "launch": layer_words(describe_operator(task.task.op)),
                        "trials": task.trials,
                        "untuned_ms": task.default_ms,
                        "best_ms": task.best_ms,
                        "schedule": None if task.best is None else describe(task.best),
                    }
                    launches[use.form].append(launch)
        row = {"layers": list(found.layers), "untuned_ms": found.untuned_ms, "form": found.form}
        rows.append(row | {"forms_ms": dict(found.forms_ms), "launches": launches})
    return rows


def table(rows: list[dict[str, Any]], compared: dict[str, Any]) -> str:
    """One layer of each group within the network, and the network in the last row."""

    def line(name: str, before: float | None, after: float | None, form: str, others: str) -> list[str]:
        ratio = f"{before / after:.2f}" if before and after else ""
        return [name, f"{before:.3f}" if before else "", f"{after:.3f}" if after else "", ratio, form, others]

    cells = []
    for row in rows:
        forms = row["forms_ms"]
        alone = ", ".join(f"{form} {ms:.3f}" for form, ms in sorted(forms.items(), key=lambda item: item[1]))
        times = [compared["layers_ms"][layer] for layer in row["layers"]]
        before, after = (sum(ms[which] for ms in times) / len(times) for which in ("untuned", "tuned"))
        cells.append(line(", ".join(row["layers"]), before, after, row["form"] or "", alone))
    low, high = compared["speed_up"]["ci95"]
    before, after = compared["untuned_ms"]["median"], compared["tuned_ms"]["median"]
    note = f"{compared['rounds']} interleaved rounds, 95 % within {low:.2f} to {high:.2f}"
    network = ["whole network", f"{before:.3f}", f"{after:.3f}", f"{compared['speed_up']['median']:.2f}", "", note]
    return markdown_table(
        ["Layers", "Untuned ms", "Tuned ms", "Ratio", "Form", "Forms as measured alone, ms"], [*cells, network]
    )


def plot(result: SessionResult, path: Path) -> None:
    """The sum over all layers, each with the best schedule so far, after each trial."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    done = result.known_trials + result.new_trials
    axes.plot(range(done - len(result.curve_ms) + 1, done + 1), result.curve_ms, drawstyle="steps-post")
    axes.set_xlabel("trials")
    axes.set_ylabel(f"all layers, ms ({result.device.kind})")
    axes.set_title(f"best so far on {result.device.key}", fontsize=9)
    axes.set_ylim(bottom=0)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="local")
    parser.add_argument("--trials-per-layer", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="further ONNX files to tune the layers of")
    options = record_options(parser, Path("results/reference/tuning"))
    options.out.mkdir(parents=True, exist_ok=True)
    measurer = LocalMeasurer(open_target(options.device), Trial(runs=16))
    try:
        facts = measurer.device_facts()
        words = "".join(character if character.isalnum() else "-" for character in facts.key.lower())
        name = "-".join(filter(None, words.split("-")))
        database = options.out / f"{name}.jsonl"
        with tempfile.TemporaryDirectory(prefix="structadmm-tuning-") as directory:
            scratch = Path(directory)
            network = scratch / "resnet18.onnx"
            write_network(network, options.width)
            result = tune([network, *options.also], database, measurer, options.trials_per_layer)
            compared = compare(network, database, Runner(measurer.target), scratch, options.rounds)
    finally:
        measurer.close()
    rows = layer_rows(result)
    plot(result, options.out / "curve.svg")
    write_record(
        options.out,
        made_by=options.made_by,
        kind=facts.kind,
        rows=rows,
        table=table(rows, compared),
        database=database.name,
        trials=result.known_trials + result.new_trials,
        network=compared,
        curve_ms=list(result.curve_ms),
    )
    print(f"tuned over untuned: {compared['speed_up']['median']:.3f}, goal {GOAL}")


if __name__ == "__main__":
    main()
