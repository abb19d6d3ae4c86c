"""The commands that work on run directories: `demo`, `run`, `train-all`, and one for each stage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.export_command import export
from structadmm.progress import Reporter, SilentReporter

Device = Annotated[str, typer.Option("--device", help="Where bundles are measured: `local` is this machine's OpenCL.")]
StageDevice = Annotated[
    str | None,
    typer.Option("--device", help="Where bundles are measured.  [local; for a report where they were]"),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a value of the configuration.")
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print the results as JSON, and no progress.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(demo)
    app.command()(run)
    app.command("train-all")(train_all)
    app.command()(export)
    for stage, help_text in (
        ("train", "Train and prune: the first stage of a run directory."),
        ("build", "Compile both networks to bundles."),
        ("measure", "Time both bundles on a device."),
        ("report", "Write result.json, report.html and report.md."),
    ):
        app.command(stage, help=help_text)(_stage_command(stage))


def demo(
    out: Annotated[Path, typer.Option("--out", help="The run directory.")] = Path("runs/demo"),
    device: Device = "local",
    overrides: Overrides = None,
    as_json: JsonOutput = False,
) -> None:
    """Take a small ResNet-18 through the whole line: train, prune, compile, measure. Some two minutes on two cores."""
    from pipeline.demo import demo_config

    with demo_config() as config:
        _run(config, out, device, overrides or [], as_json)


def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The configuration of the experiment.")],
    *,
    out: Annotated[Path | None, typer.Option("--out", help="The run directory; runs/NAME if not given.")] = None,
    device: Device = "local",
    from_stage: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="Run this stage (train, export, build, measure, report) and the later ones in any case.",
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: JsonOutput = False,
) -> None:
    """Run an experiment: every stage that is not up to date. A run that was interrupted goes on where it stopped."""
    from pipeline.run_config import load_run_config

    overrides = overrides or []
    if out is None:
        out = Path("runs") / load_run_config(config, overrides).name
    _run(config, out, device, overrides, as_json, forced_from=from_stage)


def train_all(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG.toml...", help="The experiments' configurations.")],
    *,
    runs: Annotated[Path, typer.Option("--runs", help="Where the run directories lie, each by its name.")] = Path(
        "runs"
    ),
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="How many are trained at a time.")] = 1,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.0, help="Stop all with a checkpoint after this time.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train several experiments, those first whose weights others start from. The same command goes on after a stop."""
    from pipeline.train_all import plan_jobs, train_jobs

    jobs = plan_jobs(configs, runs, overrides or [])
    train_jobs(jobs, at_once=at_once, minutes=minutes, reporter=_reporter(False), overrides=overrides or [])


def _run(
    config: Path, out: Path, device: str, overrides: Sequence[str], as_json: bool, *, forced_from: str | None = None
) -> None:
    from pipeline.run import run_stages

    run_stages(
        config,
        out,
        device=device,
        reporter=_reporter(as_json),
        overrides=overrides,
        forced_from=forced_from,
    )
    _show_results(out, as_json)


def _stage_command(stage: str) -> Callable[..., None]:
    def command(
        run_dir: RunPath,
        *,
        config: Annotated[
            Path | None, typer.Option("--config", help="Start the run directory with this configuration.")
        ] = None,
        device: StageDevice = None,
        force: Annotated[bool, typer.Option("--force", help="Run the stage even if it is up to date.")] = False,
        overrides: Overrides = None,
        as_json: JsonOutput = False,
    ) -> None:
        from pipeline.run import CONFIG, measured_device, run_stages

        if device is None and stage == "report":
            device = measured_device(run_dir)  # a report is about the measurement that is there
        run_stages(
            config or run_dir / CONFIG,
            run_dir,
            device=device or "local",
            reporter=_reporter(as_json),
            overrides=overrides or [],
            stages=(stage,),
            forced_from=stage if force else None,
        )
        if stage == "report":
            _show_results(run_dir, as_json)

    return command


def _reporter(as_json: bool) -> Reporter:
    if as_json:
        return SilentReporter()
    from pipeline.progress import console_reporter  # rich takes longer to import than --help may

    return console_reporter()


def _show_results(run_dir: Path, as_json: bool) -> None:
    from results.records import read_result
    from results.table import print_table

    report = run_dir / "report"
    if as_json:
        sys.stdout.write((report / "result.json").read_text())
        return
    print_table(read_result(report / "result.json"))
    typer.echo(f"Report: {report / 'report.html'}")
