"""The commands about this machine: `doctor`, `devices`, `runner build`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from structadmm.errors import UserError
from structadmm.progress import Reporter

JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Phones = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="adb:HOST:PORT", help="Also this phone; those on USB are found without."),
]

MARKS = {"ok": "ok    ", "absent": "absent", "broken": "BROKEN"}


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(doctor)
    app.command()(devices)
    runner = typer.Typer(no_args_is_help=True)
    runner.callback(help="The program that runs bundles on a device.")(lambda: None)
    runner.command("build")(build_runner)
    app.add_typer(runner, name="runner")


def doctor(phones: Phones = None, as_json: JsonOutput = False) -> None:
    """Look at this machine: packages, compilers, OpenCL devices and phones (a kernel is run on each).

    Says how to install what is missing. Exits with 1 if something that the demo needs is broken.
    """
    from pipeline.doctor import examine

    findings = []
    for finding in examine(phones or []):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{MARKS[finding.state]}  {finding.subject}: {finding.detail}")
            if finding.remedy:
                typer.echo(f"        -> {finding.remedy}")
    broken = [finding.subject for finding in findings if finding.state == "broken"]
    if as_json:
        values = [dataclasses.asdict(finding) for finding in findings]
        typer.echo(json.dumps({"schema": 1, "ok": not broken, "findings": values}, indent=2))
    elif not broken:
        typer.echo("Everything that `structadmm demo` needs is here and works.")
    else:
        typer.echo(f"Broken: {', '.join(broken)}.")
    if broken:
        raise typer.Exit(1)


def devices(phones: Phones = None, as_json: JsonOutput = False) -> None:
    """List the OpenCL devices of this machine and the phones on USB, by the names that --device takes."""
    from device.local_target import find_local_devices
    from device.phone_report import ask_phone, find_phones

    named, usb_problem = find_phones(phones or [])
    found = find_local_devices()
    reports = [ask_phone(device, problem, _prompts()) for device, problem in named]
    if as_json:
        value = {
            "schema": 1,
            "local": [{"device": device.name, **device.info.model_dump(mode="json")} for device in found.devices],
            "failures": dict(found.failures),
            "phones": [dataclasses.asdict(report) for report in reports],
            "usb_problem": usb_problem,
        }
        typer.echo(json.dumps(value, indent=2))
        return
    for device in found.devices:
        info = device.info
        typer.echo(f"{device.name:<16} {info.name}, {info.platform}, driver {info.driver} ({info.type})")
    for driver, why in found.failures.items():
        typer.echo(f"{'-':<16} driver {driver} shows no device: {why}")
    for report in reports:
        typer.echo(f"{report.device:<16} {report.summary}")
    if usb_problem:
        typer.echo(f"Phones on USB cannot be looked for: {usb_problem}", err=True)
    if not found.devices and not reports:
        raise UserError("no OpenCL device and no phone found: `structadmm doctor` says what to install")


def _prompts() -> Reporter:
    """Tells a person, on standard error, to tap Allow on a phone."""
    from pipeline.progress import console_reporter

    return console_reporter()


def build_runner(
    abi: Annotated[
        str, typer.Option("--abi", help="The machine it is for: host, arm64-v8a or aarch64-linux.")
    ] = "host",
    out: Annotated[
        Path | None, typer.Option("--out", help="Copy it here; without, its place in the cache is printed.")
    ] = None,
) -> None:
    """Build the runner, or find it in the cache."""
    import shutil

    from device.runner_build import build_runner as build
    from structadmm.files import atomic_path, refuse_unwritable

    if out is not None:
        refuse_unwritable(out)
    executable = build(abi)
    if out is not None:
        with atomic_path(out) as temporary:
            shutil.copyfile(executable, temporary)
        out.chmod(0o755)
    typer.echo(str(out or executable))
