"""`structadmm export`: of a run directory, or of anybody's pruned network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from structadmm.errors import UserError
from structadmm.files import staged_folder
from structadmm.progress import Reporter, SilentReporter

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a value of the configuration.")
]


def export(
    what: Annotated[
        str,
        typer.Argument(metavar="RUN|MODEL", help="A run directory; with --out, a built-in model or module:callable."),
    ],
    *,
    out: Annotated[Path | None, typer.Option("--out", help="Export MODEL to this directory.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="MODEL's weights, .safetensors or .pt.")] = None,
    dense: Annotated[
        Path | None, typer.Option("--dense", help="Weights before pruning, for baseline.onnx; --weights if not given.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", help="MODEL's input, batch first; again for each further input.  [1,3,32,32]"),
    ] = None,
    samples: Annotated[
        Path | None, typer.Option("--samples", help="Real inputs to verify MODEL on: .npz with `inputs` and `labels`.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Start the run directory with this configuration.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run the stage even if it is up to date.")] = False,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON, and no progress.")] = False,
) -> None:
    """Shrink the pruned network and save both networks as ONNX, verified.

    Of a network that was not trained here: `structadmm export mine:net --weights net.pt --shape 1,3,224,224 --out DIR`.
    """
    reporter = _reporter(as_json)
    if out is not None:
        if config is not None or force:
            raise UserError("--config and --force belong to a run directory: leave them out, or leave --out out")
        _export_model(what, out, weights, dense, shape or ["1,3,32,32"], samples, overrides or [], reporter, as_json)
        return
    if any(option is not None for option in (weights, dense, samples)) or ":" in what:
        raise UserError("exporting a MODEL needs --out DIR; a run directory takes no --weights, --dense or --samples")
    from pipeline.run import CONFIG, run_stages

    run_dir = Path(what)
    run_stages(
        config or run_dir / CONFIG,
        run_dir,
        device="local",
        reporter=reporter,
        overrides=overrides or [],
        stages=("export",),
        forced_from="export" if force else None,
    )


def _export_model(
    entry: str,
    out: Path,
    weights: Path | None,
    dense: Path | None,
    shapes: list[str],
    samples: Path | None,
    overrides: list[str],
    reporter: Reporter,
    as_json: bool,
) -> None:
    import json

    from export.config import ExportConfig
    from export.export_network import export_network
    from export.foreign import build_network, example_inputs, read_weights
    from export.stage import read_samples
    from pipeline.toml_config import apply_overrides, validate

    examples = example_inputs(shapes)
    values = apply_overrides({"export": {}}, overrides)
    if set(values) != {"export"}:
        raise UserError(
            f"--set: a MODEL has the section export only, got {', '.join(sorted(set(values) - {'export'}))}"
        )
    batches = {example.shape[0] for example in examples}
    if len(batches) == 1:
        values["export"].setdefault("batch", batches.pop())
    config = validate(ExportConfig, values["export"], "--set or --shape")
    with staged_folder(out, last="export.json") as folder:
        record = export_network(
            build_network(entry, weights),
            examples,
            folder,
            config=config,
            dense_state=None if dense is None else read_weights(dense),
            samples=None if samples is None else read_samples(samples),
            reporter=reporter,
        )
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    conv, macs, checks = record["conv_params"], record["macs"], record["checks"]
    typer.echo(
        f"{out}: batch {config.batch}, {conv['ratio']:.2f}x fewer CONV parameters, {macs['ratio']:.2f}x fewer MACs; "
        "largest difference "
        f"{checks['masked_vs_shrunk']:.1e} shrunk, {checks['shrunk_vs_onnx']:.1e} on ONNX Runtime"
    )


def _reporter(as_json: bool) -> Reporter:
    if as_json:
        return SilentReporter()
    from pipeline.progress import console_reporter  # rich takes longer to import than --help may

    return console_reporter()
