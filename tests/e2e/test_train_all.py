from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.run_directory import open_run_directory
from pipeline.stages import STAGE_NAMES
from pipeline.train_all import plan_jobs
from structadmm.errors import UserError

from .conftest import argv, environment, structadmm

DENSE = """name = "dense"
[train]
threads = 1
[train.model]
entry = "cifar_resnet20"
kwargs = { width = 4 }
[train.dense]
epochs = 1
[[train.rounds]]
structure = "filter"
sparsity = 0.0
admm_epochs = 0
retrain_epochs = 0
"""


def pruned(name: str, weights: Path, epochs: int = 1) -> str:
    return f"""name = "{name}"
[train]
threads = 1
[train.model]
entry = "cifar_resnet20"
kwargs = {{ width = 4 }}
weights = "{weights}"
[train.dense]
epochs = 0
[[train.rounds]]
structure = "filter"
sparsity = 0.5
admm_epochs = 1
retrain_epochs = {epochs}
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def write(folder: Path, text: str) -> Path:
    path = folder / f"{text.split(chr(34))[1]}.toml"
    path.write_text(text)
    return path


def test_runs_that_start_from_anothers_weights_are_trained_after_it_in_whatever_order_they_are_named(
    tmp_path: Path, runs: Path
) -> None:
    weights = runs / "dense" / "train" / "dense.safetensors"
    configs = [write(tmp_path, text) for text in (pruned("a", weights), pruned("b", weights), DENSE)]
    done = structadmm("train-all", *configs, "--runs", runs, "--at-once", 2)
    assert done.status == 0, done.stderr
    dense = load_file(weights)
    for name in ("a", "b"):
        record = json.loads((runs / name / "train" / "pruning.json").read_text())
        assert record["accuracy"]["dense_correct"] > 0
        started_from = load_file(runs / name / "train" / "dense.safetensors")
        assert all(bool((started_from[key] == dense[key]).all()) for key in dense)
    # A second time there is nothing to do.
    before = (runs / "a" / "train" / "pruned.safetensors").stat().st_mtime_ns
    assert structadmm("train-all", *configs, "--runs", runs).status == 0
    assert (runs / "a" / "train" / "pruned.safetensors").stat().st_mtime_ns == before


def test_a_run_that_fails_takes_along_those_that_start_from_it_and_no_other(tmp_path: Path, runs: Path) -> None:
    absent = tmp_path / "absent.safetensors"
    failing = pruned("failing", absent)
    follower = pruned("follower", runs / "failing" / "train" / "dense.safetensors")
    configs = [write(tmp_path, text) for text in (failing, follower, DENSE)]
    done = structadmm("train-all", *configs, "--runs", runs, "--at-once", 3)
    assert done.status == 1
    line = done.one_line()
    assert "failing failed with status 2" in line
    assert f"{absent} does not exist" in line
    assert "follower was not trained" in line
    assert (runs / "dense" / "train" / "pruning.json").exists()


@pytest.fixture
def endless(tmp_path: Path, runs: Path) -> Path:
    """The configuration of a run that never ends by itself, and weights for it."""
    assert structadmm("train-all", write(tmp_path, DENSE), "--runs", runs).status == 0
    (runs / "dense" / "train" / "dense.safetensors").rename(tmp_path / "weights.safetensors")
    return write(tmp_path, pruned("endless", tmp_path / "weights.safetensors", epochs=100_000))


def test_when_the_time_is_up_all_stop_with_a_checkpoint_and_the_same_command_goes_on(endless: Path, runs: Path) -> None:
    log = runs / "endless.log"
    for _ in range(20):  # on a busy machine the time can be up before the first epoch is
        done = structadmm("train-all", endless, "--runs", runs, "--minutes", "0.2")
        assert done.status == 75
        assert "0 of 1 runs are trained after 0.2 minutes, 1 with a checkpoint: the same command" in done.one_line()
        if "resuming after" in log.read_text():
            break
    text = log.read_text()
    assert 0 < text.index("stopped by SIGTERM after a checkpoint") < text.index("resuming after")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_stops_all_with_a_checkpoint(endless: Path, runs: Path, number: signal.Signals, status: int) -> None:
    process = subprocess.Popen(
        argv("train-all", endless, "--runs", runs), stderr=subprocess.PIPE, text=True, env=environment()
    )
    history = runs / "endless" / ".train.partial" / "history.jsonl"
    until = time.monotonic() + 240
    while not (history.exists() and history.read_text().count("\n") >= 2):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=150)
    assert process.returncode == status
    assert "stopped by SIGTERM after a checkpoint" in (runs / "endless.log").read_text()
    with open_run_directory(runs / "endless", STAGE_NAMES):
        pass  # nobody works there any more


def test_a_job_waits_for_whatever_it_distils_from(tmp_path: Path, runs: Path) -> None:
    weights = runs / "dense" / "train" / "dense.safetensors"
    section = f'[train.distill]\nweights = "{runs / "a" / "train" / "pruned.safetensors"}"\n'
    configs = [write(tmp_path, text) for text in (pruned("b", weights) + section, pruned("a", weights), DENSE)]
    assert {job.name: set(job.after) for job in plan_jobs(configs, runs)} == {
        "dense": set(), "a": {"dense"}, "b": {"dense", "a"},
    }  # fmt: skip


def test_a_job_waits_for_the_run_that_it_goes_on_from(tmp_path: Path, runs: Path) -> None:
    weights = runs / "dense" / "train" / "dense.safetensors"
    further = pruned("further", weights).replace(f'weights = "{weights}"', "")
    further = further.replace("[train]\n", f'[train]\nafter = "{runs / "a"}"\n')
    configs = [write(tmp_path, text) for text in (further, pruned("a", weights), DENSE)]
    assert {job.name: set(job.after) for job in plan_jobs(configs, runs)} == {
        "dense": set(), "a": {"dense"}, "further": {"a"},
    }  # fmt: skip


def test_jobs_that_cannot_be_ordered_are_refused(tmp_path: Path, runs: Path) -> None:
    def job(name: str, after: str) -> Path:
        return write(tmp_path, pruned(name, runs / after / "train" / "dense.safetensors"))

    with pytest.raises(UserError, match="a, b start from each other's weights"):
        plan_jobs([job("a", "b"), job("b", "a")], runs)
    (tmp_path / "again").mkdir()
    twice = write(tmp_path / "again", DENSE)
    with pytest.raises(UserError, match="two configurations are named 'dense'"):
        plan_jobs([write(tmp_path, DENSE), twice], runs)
