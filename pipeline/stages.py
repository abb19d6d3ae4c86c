"""The five stages: their order, what each is made from, and the function that does it.

Stage modules are imported when their stage runs: torch and TVM cost seconds that `structadmm --help` must not take.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.named_files import named_files
from pipeline.run_config import RunConfig
from pipeline.run_directory import GoesOn, RunDirectory, changed_file
from structadmm.errors import UserError
from structadmm.files import sha256_file
from structadmm.progress import Reporter


@dataclass(frozen=True)
class StageContext:
    """What a stage function is given besides its own output directory."""

    config: RunConfig
    directory: RunDirectory
    device: str
    reporter: Reporter


@dataclass(frozen=True)
class Stage:
    """One stage of the line.

    Attributes:
        name: its directory in the run directory, its command, and its section in the configuration.
        upstream: the stages whose files it reads.
        goes_on: whether it continues from what an interrupted attempt left, given that attempt's inputs, the new ones
            and its directory; None for stages that start over.
        packages: the distributions whose version decides whether it is up to date. None for training: a night's weights
            stay what they are when PyTorch is updated, or when the run directory moves to the machine with the phone;
            `pruning.json` names the versions that made them.
        execute: does the stage, writing into the directory it is given.
    """

    name: str
    upstream: tuple[str, ...]
    goes_on: GoesOn | None
    packages: tuple[str, ...]
    execute: Callable[[StageContext, Path], None]

    def inputs(self, context: StageContext) -> dict[str, Any]:
        """Everything that decides what this stage writes, as JSON."""
        inputs: dict[str, Any] = {
            "config": {self.name: getattr(context.config, self.name).model_dump(mode="json")},
            "files": named_files(getattr(context.config, self.name)),
            "upstream": {name: context.directory.content(name) for name in self.upstream},
            "versions": {name: importlib.metadata.version(name) for name in self.packages},
        }
        if self.name == "build":
            path = _tuning_database(context)
            inputs["tuning_database"] = None if path is None else sha256_file(path)
        if self.name == "measure":
            inputs["device"] = context.device
        if self.name == "report":
            inputs["name"] = context.config.name
        return inputs


def _train(context: StageContext, out: Path) -> None:
    from export.living import living_network
    from train.stage import run_train

    run_train(context.config.train, out, context.reporter, living_network)


def _training_goes_on(old: Mapping[str, Any], new: Mapping[str, Any], partial: Path) -> bool:
    from train.future import can_go_on
    from train.stage_files import CHECKPOINT

    if changed_file(old, new) is not None:
        return False
    return can_go_on(old["config"]["train"], new["config"]["train"], partial / CHECKPOINT)


def _export(context: StageContext, out: Path) -> None:
    from export.stage import run_export

    run_export(context.config.export, context.directory.stage_dir("train"), out, context.reporter)


def _build(context: StageContext, out: Path) -> None:
    from tvm_build.stage import run_build

    shipped = _tuning_database(context) if context.config.build.tuned == "auto" else None
    run_build(context.config.build, context.directory.stage_dir("export"), out, context.reporter, shipped)


def _tuning_database(context: StageContext) -> Path | None:
    """The file that `build.tuned` means for this device, None if there is none."""
    refuse_missing_database(context.config)
    build = context.config.build
    if build.tuned != "auto":
        return build.tuned
    if build.schedules != "structadmm":
        return None
    from pipeline.shipped_tuning import shipped_database

    return shipped_database(context.device, build.resolved_target, build.dtype)


def refuse_missing_database(config: RunConfig) -> None:
    """Look for the file that `build.tuned` names: training need not come first to find that it is not there.

    Raises:
        UserError: it is not.
    """
    tuned = config.build.tuned
    if isinstance(tuned, Path) and not tuned.is_file():
        raise UserError(f"build.tuned: there is no tuning database {tuned}: make it with `structadmm tune`")


def refuse_unusable_database(config: RunConfig) -> None:
    """Read what `build.tuned` names as the build stage will: a night of training need not come first.

    Raises:
        UserError: it is not there, is no tuning database, or has nothing for the target and number type.
    """
    refuse_missing_database(config)
    build = config.build
    if isinstance(build.tuned, Path):
        from tvm_build.tuning.tuned import load_tuned

        load_tuned(build.tuned, target=build.resolved_target, dtype=build.dtype, memory=build.memory)


def _measure(context: StageContext, out: Path) -> None:
    from device.stage import run_measure

    run_measure(context.config.measure, context.directory.stage_dir("build"), out, context.device, context.reporter)


def _report(context: StageContext, out: Path) -> None:
    from results.stage import run_report

    run_report(context.config.report, context.directory.path, out, context.reporter, name=context.config.name)


STAGES: tuple[Stage, ...] = (
    Stage("train", (), _training_goes_on, (), _train),
    Stage("export", ("train",), None, ("structadmm", "torch", "onnx"), _export),
    Stage("build", ("export",), None, ("structadmm", "apache-tvm"), _build),
    Stage("measure", ("build",), None, ("structadmm",), _measure),
    Stage("report", ("train", "export", "build", "measure"), None, ("structadmm",), _report),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)
STAGE_BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in STAGES}
