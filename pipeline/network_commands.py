"""The commands for networks that are trained already: `evaluate`, `deploy`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from structadmm.errors import UserError
from structadmm.progress import Reporter, SilentReporter

Device = Annotated[str, typer.Option("--device", help="As `structadmm devices` lists them; `local` is the first one.")]
Target = Annotated[
    str, typer.Option("--target", help="The GPU that kernels are chosen for; `auto` asks the device what it is.")
]
DType = Annotated[str, typer.Option("--dtype", help="float32, float16, or float16_float32 (stored, computed).")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(evaluate)
    app.command()(deploy)


def evaluate(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="An .onnx file, or a .clbundle.")],
    *,
    data: Annotated[str, typer.Option("--data", help="A data set's name (cifar10, digits, ...), or module:callable.")],
    root: Annotated[Path | None, typer.Option("--data-root", help="The folder that holds its files.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Refuse data whose checksum is not the published one.")
    ] = True,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="train.data.KEY=VALUE", help="As train.data.kwargs.size=48."),
    ] = None,
    device: Device = "local",
    target: Annotated[
        str | None,
        typer.Option("--target", help="The GPU to compile an .onnx file for. [default: auto]"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of an .onnx file: float32 (the default), float16, float16_float32.")
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Count the test images that a network classifies rightly: in ONNX Runtime, and compiled, on a device."""
    from pipeline.evaluate import data_digest
    from pipeline.evaluate import evaluate as evaluate_network
    from pipeline.toml_config import apply_overrides, validate
    from train.config import CHECKSUMMED, DataConfig
    from train.data import load_dataset

    given: dict[str, Any] = {"train": {"data": {"name": data, "root": root, "verify": verify}}}
    values = apply_overrides(given, overrides or [])
    if set(values) != {"train"} or set(values["train"]) != {"data"}:
        raise UserError(f"--set {' '.join(overrides or [])}: only train.data can be set here")
    config = validate(DataConfig, values["train"]["data"], "train.data")
    dataset = load_dataset(config)
    answers, told = evaluate_network(
        path, dataset, device=device, target=target, dtype=dtype, reporter=_reporter(as_json)
    )
    digest, images = data_digest(dataset), len(dataset.test_labels)
    verified = config.verify if config.name in CHECKSUMMED else None
    differing = answers[0].differing(answers[-1]) if len(answers) > 1 else None
    if as_json:
        results = [{"by": one.by, "correct": one.correct, "images": images, "accuracy": one.percent} for one in answers]
        value = {
            "schema": 1,
            "file": str(path),
            "data": {"name": dataset.name, "images": images, "sha256": digest, "verified": verified},
            **told,
            "results": results,
            "differing": differing,
        }
        typer.echo(json.dumps(value, indent=2))
        return
    width = max(len(one.by) for one in answers)
    for one in answers:
        typer.echo(f"{one.by:<{width}}  {one.percent:6.2f} %  {one.correct} of {images}")
    if differing is not None:
        typer.echo(f"They differ on {differing} of {images} images; compiled for {told['target']}, {told['dtype']}.")
    unchecked = "; the files were not checked against the published ones" if verified is False else ""
    typer.echo(f"Test images of {dataset.name}: SHA-256 {digest[:16]}... of pixels and labels{unchecked}.")


def deploy(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A reference network, or a folder that holds one.")
    ] = None,
    *,
    list_only: Annotated[bool, typer.Option("--list", help="List the reference networks.")] = False,
    device: Device = "local",
    target: Target = "auto",
    dtype: DType = "float32",
    tuned: Annotated[
        Path | None, typer.Option("--tuned", help="A tuning database of the device, for both networks.")
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", min=20, max=1_000_000, help="Interleaved rounds that are timed.")
    ] = 200,
    out: Annotated[
        Path | None, typer.Option("--out", help="Keep bundles, measurement and result in this folder.")
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Measure a network that is pruned already against its dense self: nobody needs to train to see the speed-up."""
    from pipeline.reference_networks import find_network

    if list_only:
        _list_networks(as_json)
        return
    if name is None:
        raise UserError("deploy needs the NAME of a reference network: `structadmm deploy --list` shows them")
    from device.config import MeasureConfig
    from pipeline.deploy import Settings
    from pipeline.deploy import deploy as deploy_network
    from results.table import print_table
    from tvm_build.precision import precision_by_name

    precision_by_name(dtype)
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    folder = find_network(name)
    settings = Settings(device, target, dtype, MeasureConfig(runs=runs), tuned)
    with tempfile.TemporaryDirectory(prefix="structadmm-deploy-") as scratch:
        result = deploy_network(folder, settings, out or Path(scratch), _reporter(as_json))
    if as_json:
        typer.echo(json.dumps(result.model_dump(mode="json", by_alias=True), indent=2))
        return
    print_table(result)
    network = folder.network
    # They are not those that would be fetched.
    other_images = " --data-root FOLDER --no-verify" if network.data.note else ""
    typer.echo(
        f"Accuracy as published, of {network.data.images} test images of {network.data.name}. "
        f"`structadmm evaluate {folder.onnx} --data {network.data.name}{other_images}` counts again."
    )
    typer.echo("The dense network has random weights: its latency does not depend on them.")


def _list_networks(as_json: bool) -> None:
    from pipeline.reference_networks import list_networks

    folders = list_networks()
    if as_json:
        networks = [
            {"name": folder.name, "path": str(folder.path), **folder.network.model_dump(mode="json", by_alias=True)}
            for folder in folders
        ]
        typer.echo(json.dumps({"schema": 1, "networks": networks}, indent=2))
        return
    from pipeline.tables import print_table

    print_table(
        ("name", "network", "top-1 % dense -> pruned", "CONV params", "MACs"),
        (
            (
                folder.name,
                folder.network.title,
                f"{folder.network.accuracy.dense:.2f} -> {folder.network.accuracy.pruned:.2f}",
                f"{folder.network.conv_params.ratio:.1f}× fewer",
                f"{folder.network.macs.ratio:.1f}× fewer",
            )
            for folder in folders
        ),
        left=2,
    )


def _reporter(as_json: bool) -> Reporter:
    if as_json:
        return SilentReporter()
    from pipeline.progress import console_reporter  # rich takes longer to import than --help may

    return console_reporter()
