"""Do the stages of a run that are not done yet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from device.target import check_device_name
from pipeline.run_config import RunConfig
from pipeline.run_directory import RECORD, SCHEMA, RunDirectory, open_run_directory
from pipeline.stages import STAGE_BY_NAME, STAGE_NAMES, Stage, StageContext, refuse_unusable_database
from pipeline.toml_config import apply_overrides, read_toml, validate
from structadmm.errors import StructadmmError, UserError
from structadmm.files import read_json, write_text
from structadmm.progress import Reporter

CONFIG = "config.toml"


class InterruptedRunError(StructadmmError):
    """The user pressed Ctrl-C; the message says how to go on."""

    exit_status = 130


def run_stages(
    config_path: Path,
    out: Path,
    *,
    device: str,
    reporter: Reporter,
    overrides: Sequence[str] = (),
    stages: Sequence[str] = STAGE_NAMES,
    forced_from: str | None = None,
) -> list[str]:
    """Bring `stages` of the run directory `out` up to date with the configuration.

    Args:
        config_path: a TOML file; it is copied to `out/config.toml`, overrides applied.
        out: the run directory, created where needed.
        device: where bundles are measured.
        reporter: where progress is told.
        overrides: `section.key=value`, each replacing a value of the file.
        stages: the stages wanted, in order; those that are up to date are not run again.
        forced_from: this stage and what follows it run in any case, from the beginning.

    Returns:
        The names of the stages that ran.

    Raises:
        UserError: the configuration, the directory or a stage's input is not usable.
        InterruptedRunError: Ctrl-C.
    """
    values = apply_overrides(read_toml(config_path), overrides)
    config = validate(RunConfig, values, str(config_path))
    if forced_from is not None and forced_from not in STAGE_BY_NAME:
        raise UserError(f"--from {forced_from}: no such stage: choose one of {', '.join(STAGE_NAMES)}")
    _refuse_foreign_directory(out, config)
    check_device_name(device)
    if "build" in stages:
        refuse_unusable_database(config)
    if "measure" in stages and not (out / "measure").exists():
        _refuse_missing_device(device)
    forced = STAGE_NAMES[STAGE_NAMES.index(forced_from) :] if forced_from else ()
    done: list[str] = []
    try:
        with open_run_directory(out, STAGE_NAMES) as directory:
            context = StageContext(config, directory, device, reporter)
            for stage in (STAGE_BY_NAME[name] for name in stages if name not in forced):
                if stage.goes_on is not None:
                    directory.refuse_to_drop(stage.name, stage.inputs(context), stage.goes_on)
            _keep_config(config_path, directory, values if overrides else None)
            _require_up_to_date(STAGE_NAMES[: STAGE_NAMES.index(stages[0])], context)
            if "measure" in stages and _will_train(stages, forced, context):
                _warn_of_absent_phone(context)
            for name in stages:
                if _run_stage(STAGE_BY_NAME[name], context, force=name in forced):
                    done.append(name)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted: `structadmm run {out / CONFIG} --out {out}{_device_option(device)}` goes on from here"
        ) from None
    if not done:
        reporter.say(f"{out}: nothing to do, {', '.join(stages)} up to date")
    return done


def _run_stage(stage: Stage, context: StageContext, *, force: bool) -> bool:
    """Run one stage if it must; True if it ran."""
    directory, reporter = context.directory, context.reporter
    inputs = stage.inputs(context)
    if force:
        reason: str | None = "forced"
        directory.discard_partial(stage.name)
    else:
        reason = directory.why_run(stage.name, inputs)
    if reason is None:
        if stage.goes_on is not None:
            directory.discard_repetition(stage.name, inputs)
        else:
            directory.discard_partial(stage.name)
        reporter.say(f"{stage.name}: up to date")
        return False
    reporter.say(f"{stage.name}: {reason}")
    started = time.monotonic()
    out = directory.begin(stage.name, inputs, stage.goes_on)
    stage.execute(context, out)
    directory.complete(stage.name, inputs)
    reporter.say(f"{stage.name}: done in {time.monotonic() - started:.1f} s")
    return True


def _require_up_to_date(earlier: Sequence[str], context: StageContext) -> None:
    """A stage that is asked for by itself is not made from stale files."""
    for name in earlier:
        reason = context.directory.why_run(name, STAGE_BY_NAME[name].inputs(context))
        if reason is not None:
            raise UserError(
                f"the {name} stage of {context.directory.path} is not up to date ({reason}): "
                f"run `structadmm {name} {context.directory.path}{_device_option(context.device)}` first"
            )


def _device_option(device: str) -> str:
    """What advice must not leave out: without it, a command is about this machine."""
    return "" if device == "local" else f" --device {device}"


def measured_device(out: Path) -> str | None:
    """Where the finished measurement in a run directory was made; None where there is none."""
    record = out / "measure" / RECORD
    device = read_json(record, schema=SCHEMA)["inputs"].get("device") if record.is_file() else None
    return device if isinstance(device, str) else None


def _refuse_missing_device(device: str) -> None:
    """A mistake in `--device` must not cost a night of training. A phone may be plugged in when its turn comes."""
    from device.target import open_target

    open_target(device).close()  # of a phone, that checks the address only


def _will_train(stages: Sequence[str], forced: Sequence[str], context: StageContext) -> bool:
    train = STAGE_BY_NAME["train"]
    due = "train" in forced or context.directory.why_run("train", train.inputs(context)) is not None
    return "train" in stages and due


def _warn_of_absent_phone(context: StageContext) -> None:
    """Tell whoever started the run, while they are still there, that the phone is not; it also asks for its key now."""
    if not context.device.startswith("adb:"):
        return
    from device.phone_report import why_out_of_reach

    problem = why_out_of_reach(context.device, context.reporter)
    if problem is not None:
        context.reporter.say(
            f"warning: {context.device} is not needed before the measure stage, but does not answer now: {problem}"
        )


def _refuse_foreign_directory(out: Path, config: RunConfig) -> None:
    """A directory of something else, or of another experiment, is not written into."""
    kept = out / CONFIG
    if kept.exists():
        name = read_toml(kept).get("name")
        if name != config.name:
            raise UserError(
                f"{out} holds the run {name!r}, this configuration is {config.name!r}: choose another --out"
            )
    elif out.is_dir() and any(entry.name != ".lock" for entry in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no run (it has no {CONFIG}): choose another --out")


def _keep_config(source: Path, directory: RunDirectory, values: dict[str, object] | None) -> None:
    """Put the configuration into the run directory: the file as it is, or, if `values` are given, those as TOML."""
    kept = directory.path / CONFIG
    text = source.read_text(encoding="utf-8") if values is None else tomli_w.dumps(values)
    if not kept.exists() or kept.read_text(encoding="utf-8") != text:
        write_text(kept, text)
