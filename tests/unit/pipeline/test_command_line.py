from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import app, run_command_line
from pipeline.config_reference import reference
from pipeline.demo import demo_config
from pipeline.run import measured_device
from pipeline.run_config import load_run_config
from pipeline.run_directory import open_run_directory
from pipeline.stages import STAGE_NAMES, STAGES, StageContext
from structadmm.errors import InvariantError
from structadmm.progress import SilentReporter

ROOT = Path(__file__).parents[3]
SHIPPED = next((ROOT / "results/reference/tuning").glob("*.jsonl"))
MINIMAL = (
    'name = "x"\n[train.model]\nentry = "cifar_resnet20"\n[[train.rounds]]\nstructure = "filter"\nsparsity = 0.5\n'
)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line with which a user's mistake ends."""
    assert run_command_line([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("structadmm: ")]
    assert len(errors) == 1
    assert captured.err.splitlines()[-1] == errors[0]
    return errors[0]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "x.toml"
    path.write_text(MINIMAL)
    return path


def test_bad_configurations_end_in_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for text, expected in (
        (MINIMAL.replace("sparsity", "sparsty"), "[train.rounds.0] has no key 'sparsty': did you mean 'sparsity'?"),
        (MINIMAL.replace("0.5", "1.0"), "[train.rounds.0] sparsity = 1.0: expected it to be less than 1"),
        (MINIMAL + "[mesure]\n", "the top level has no key 'mesure': did you mean 'measure'?"),
        (MINIMAL.replace('"x"', '"a b/c"'), "name = 'a b/c': expected at most 80 of the letters A to Z and a to z,"),
        (MINIMAL.replace('"x"', '"ünï"'), "digits, '.', '_' and '-', a letter or a digit first"),
        (MINIMAL.replace("0.5", "much"), "not valid TOML"),
    ):
        config.write_text(text)
        assert expected in refused(capsys, "run", config, "--out", out)
    assert "no such file" in refused(capsys, "run", tmp_path / "absent.toml", "--out", out)
    assert not out.exists()


def test_a_model_that_is_no_cnn_ends_in_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path
) -> None:
    for number, (entry, expected) in enumerate(
        {
            "torch.nn:Identity": "expected logits",
            "no_such_net": "unknown model",
            "json:dumps": "json:dumps",
            "no_module:net": "no_module",
        }.items()
    ):
        config.write_text(MINIMAL.replace("cifar_resnet20", entry))
        assert expected in refused(capsys, "train", tmp_path / str(number), "--config", config)


def test_an_unknown_device_ends_in_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.clbundle").mkdir()
    assert "expected local" in refused(capsys, "bench", tmp_path / "x.clbundle", "--device", "warp-drive")
    assert "no such stage" in refused(capsys, "run", _demo(tmp_path), "--out", tmp_path / "r", "--from", "brain")


def test_an_unknown_device_of_a_run_is_refused_before_hours_of_training(
    capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path
) -> None:
    assert "warp-drive" in refused(capsys, "run", config, "--out", tmp_path / "run", "--device", "warp-drive")
    assert "expected adb:SERIAL" in refused(capsys, "run", config, "--out", tmp_path / "run", "--device", "adb:a:b:c")
    assert not (tmp_path / "run" / ".train.partial").exists()


def _demo(tmp_path: Path) -> Path:
    with demo_config() as path:
        (tmp_path / "demo.toml").write_text(path.read_text())
    return tmp_path / "demo.toml"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rn"], "No such command 'rn'"),
        (["run"], "Missing argument"),
        (["run", "--bad"], "No such option"),
        (["run", "a.toml", "b.toml"], "unexpected extra argument"),
        (["runner", "build", "--abi", "mips"], "unknown ABI 'mips'"),
        (["exec", "x.clbundle", "--input", "absent.npy", "--output", "y.npy"], "no such file"),
        (["compile", "absent.onnx", "--out", "x.clbundle"], "absent.onnx"),
        (["profile", "absent.clbundle"], "absent.clbundle"),
        (["deploy", "resnet18_w32_digits_16x", "--runs", "2000000"], "should be less than or equal to 1000000"),
        (["rpc", "serve", "--key", "k", "--max-trial-s", "inf"], "rpc serve: max_trial_s = inf"),
        (["runner", "build", "--out", "/tmp"], "/tmp is a folder, expected a file to write"),
    ],
)
def test_wrong_usage_ends_in_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert expected.lower() in refused(capsys, *arguments).lower()


def test_a_tuning_database_that_is_absent_is_refused_before_training(
    capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    line = refused(capsys, "run", config, "--out", out, "--set", "build.tuned=nope.jsonl")
    assert "there is no tuning database nope.jsonl" in line
    assert not out.exists()
    assert "unknown device 'cuda'" in refused(capsys, "train", out, "--config", config, "--device", "cuda")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("build.tuned=README.md", "README.md"),
        ("export.purify.enabled=true", "set train.data.held_out = 0.1"),
        ("build={schedules='upstream', dtype='float16'}", "leave dtype out"),
        ("build={schedules='upstream', tuned='x.jsonl'}", "leave tuned out"),
        (f"build={{tuned='{SHIPPED}', target='adreno-640'}}", "expected adreno-640"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_training(
    capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path, option: str, said: str
) -> None:
    out = tmp_path / "run"
    assert said in refused(capsys, "run", config, "--out", out, "--set", option)
    assert not out.exists()


def test_arrays_that_are_none_and_places_that_are_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.npy").touch()
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "several.npz", images=np.zeros(3), labels=np.zeros(3))
    np.save(tmp_path / "good.npy", np.zeros(3, np.float32))
    for name, said in (
        ("empty.npy", "is no .npy array"),
        ("zip.npy", "is no .npy array"),
        ("several.npz", "holds several arrays (images, labels)"),
    ):
        line = refused(capsys, "exec", "x.clbundle", "--input", tmp_path / name, "--output", tmp_path / "y.npy")
        assert name in line
        assert said in line
    line = refused(capsys, "exec", "x.clbundle", "--input", tmp_path / "good.npy", "--output", tmp_path)
    assert "is a folder, expected a file to write" in line
    line = refused(
        capsys, "exec", "x.clbundle", "--input", tmp_path / "good.npy", "--output", tmp_path / "good.npy" / "y"
    )
    assert "good.npy/y cannot be written" in line
    bundle = tmp_path / "net.clbundle"
    bundle.mkdir()
    entry = {"name": "x", "shape": [1, 3], "dtype": "float32"}
    (bundle / "manifest.json").write_text(json.dumps({"schema": 1, "inputs": [entry]}))
    line = refused(capsys, "exec", bundle, "--input", tmp_path / "good.npy", "--output", tmp_path / "y.npy")
    assert f"--input {tmp_path / 'good.npy'} is float32 [3], {bundle} takes float32 [1, 3] as x: convert it" in line


def test_advice_names_the_device_and_a_report_is_about_the_one_that_was_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, config = tmp_path / "run", tmp_path / "net.toml"
    config.write_text('name = "net"\n[train]\n[[train.rounds]]\nstructure = "filter"\nsparsity = 0.5\n')
    with open_run_directory(out, STAGE_NAMES) as directory:
        (out / "config.toml").write_text(config.read_text())
        context = StageContext(load_run_config(config), directory, "adb:PHONE1", SilentReporter())
        for stage in STAGES[:4]:
            directory.begin(stage.name, stage.inputs(context), stage.goes_on)
            directory.complete(stage.name, stage.inputs(context))
    # Every stage before the report is up to date, and what it reads is not there.
    assert "pruning.json does not exist" in refused(capsys, "report", out)
    line = refused(capsys, "report", out, "--device", "adb:PHONE2")
    assert f"(device: adb:PHONE1 -> adb:PHONE2): run `structadmm measure {out} --device adb:PHONE2` first" in line
    assert measured_device(tmp_path) is None


def test_an_unexpected_error_is_one_line_and_shows_its_traceback_with_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_phones: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("pipeline.doctor.examine", broken)
    assert run_command_line(["doctor"]) == 1
    assert capsys.readouterr().err == (
        "structadmm: unexpected ZeroDivisionError: a bug; `structadmm --debug doctor` shows where\n"
    )
    assert run_command_line(["--debug", "doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "x/y"),
            "x/y cannot be written (No space left on device)",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "a file cannot be written (No space left on device): free"),
        (OSError(errno.EROFS, "Read-only file system", "x/y"), "x/y cannot be written (Read-only file system): name"),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), "x/y cannot be used (Permission denied): see to"),
    ],
)
def test_a_disk_that_takes_nothing_is_a_mistake_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    def fails(_phones: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.doctor.examine", fails)
    assert run_command_line(["doctor"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"structadmm: {said}")
    assert "another place" in told


def test_a_broken_proof_ends_in_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(_phones: object) -> None:
        raise InvariantError("two things differ")

    monkeypatch.setattr("pipeline.doctor.examine", differs)
    assert run_command_line(["doctor"]) == 1
    assert capsys.readouterr().err == "structadmm: two things differ\n"


def test_a_reader_that_went_away_is_no_success_and_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        command = [sys.executable, "-m", "structadmm", "--help"]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, cwd=ROOT, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_outside_of_a_run_ends_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_phones: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.doctor.examine", interrupted)
    assert run_command_line(["doctor"]) == 130
    assert capsys.readouterr().err == "structadmm: interrupted\n"


def test_help_is_quick_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert {"demo", "run", "train", "export", "build", "measure", "report", "doctor", "devices"} <= set(names)
    assert run_command_line(["--help"]) == 0
    text = capsys.readouterr().out
    for name in names:
        assert name in text
    for name in names:
        assert run_command_line([name, "--help"]) == 0
        assert "Usage" in capsys.readouterr().out


def test_help_imports_neither_torch_nor_tvm_nor_matplotlib() -> None:
    script = (
        "import sys; from pipeline.cli import run_command_line; status = run_command_line(['--help']);"
        "heavy = {'torch', 'tvm', 'matplotlib', 'onnx', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(status)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_doctor_and_devices_print_json_that_says_whether_kernels_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    opencl = [finding for finding in report["findings"] if finding["subject"].startswith("OpenCL local:")]
    assert any("was right" in finding["detail"] for finding in opencl if finding["state"] == "ok")
    assert run_command_line(["devices", "--json"]) == 0
    devices = json.loads(capsys.readouterr().out)
    assert {device["device"] for device in devices["local"]} == {finding["subject"].split()[1] for finding in opencl}


def test_the_configuration_page_is_what_the_classes_say() -> None:
    told = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert told == reference(), "run `python -m pipeline.config_reference > docs/configuration.md`"


def test_every_key_of_the_configuration_page_has_a_meaning() -> None:
    for line in reference().splitlines():
        if line.startswith("| `"):
            assert line.split(" | ")[-1].strip(" |"), line


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("configs/*.toml"), ROOT / "pipeline" / "demo.toml"]), ids=lambda p: p.stem
)
def test_every_configuration_that_is_shipped_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_run_config(path).name == path.stem


def test_a_sigterm_unwinds_a_command_and_ends_it_in_one_line() -> None:
    program = (
        "import time, pipeline.cli\n"
        "def command(arguments):\n"
        "    try:\n"
        "        print('running', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('tidied', flush=True)\n"
        "pipeline.cli.run_command_line = command\n"
        "pipeline.cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.terminate()
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (143, "tidied\n", "structadmm: ended by SIGTERM\n")
