from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pipeline.run_directory import RunDirectory, changed_file, fingerprint, open_run_directory
from structadmm.errors import UserError

STAGES = ("first", "second")
INPUTS: dict[str, Any] = {"config": {"first": {"seed": 0, "rounds": [{"sparsity": 0.5}]}}, "upstream": {}}


def finish(directory: RunDirectory, stage: str, inputs: dict[str, Any], text: str = "made") -> None:
    out = directory.begin(stage, inputs, None)
    (out / "sub").mkdir()
    (out / "sub" / "file.txt").write_text(text)
    directory.complete(stage, inputs)


def changed(seed: int) -> dict[str, Any]:
    inputs: dict[str, Any] = json.loads(json.dumps(INPUTS))
    inputs["config"]["first"]["seed"] = seed
    return inputs


def test_a_finished_stage_with_the_same_inputs_need_not_run(tmp_path: Path) -> None:
    with open_run_directory(tmp_path / "run", STAGES) as directory:
        assert directory.why_run("first", INPUTS) == "has not run yet"
        finish(directory, "first", INPUTS)
        assert directory.why_run("first", INPUTS) is None
    with open_run_directory(tmp_path / "run", STAGES) as directory:
        assert directory.why_run("first", INPUTS) is None


def test_an_option_that_an_older_version_did_not_know_changes_nothing_until_it_is_given(tmp_path: Path) -> None:
    old: dict[str, Any] = {"config": {"lr": 0.1, "rounds": [{"rho": 1.0}], "limit": None}}
    with open_run_directory(tmp_path, STAGES) as directory:
        finish(directory, "first", old)
        newer: dict[str, Any] = {"config": {"lr": 0.1, "rounds": [{"rho": 1.0, "ramp": None}], "mix": None}}
        assert directory.why_run("first", newer) is None
        newer["config"]["rounds"][0]["ramp"] = 3
        assert "ramp" in (directory.why_run("first", newer) or "")
        assert directory.why_run("first", {"config": {**old["config"], "limit": 0}}) is not None


def test_the_reason_to_run_again_names_what_changed(tmp_path: Path) -> None:
    with open_run_directory(tmp_path, STAGES) as directory:
        finish(directory, "first", INPUTS)
        assert directory.why_run("first", changed(1)) == "first.seed: 0 -> 1"
        assert directory.why_run("first", INPUTS | {"upstream": {"train": "x"}}) == "train has changed"


def test_a_named_file_counts_once_it_is_known_and_for_as_long_as_it_is_there(tmp_path: Path) -> None:
    def of(**files: str | None) -> dict[str, Any]:
        return {**INPUTS, "files": files}

    with open_run_directory(tmp_path, STAGES) as directory:
        finish(directory, "first", of(weights="1", teacher=None))
        for same in (INPUTS, of(), of(weights="1"), of(weights=None), of(weights="1", teacher="2"), of(costs="3")):
            assert directory.why_run("first", same) is None
            assert changed_file(of(weights="1", teacher=None), same) is None
        assert directory.why_run("first", of(weights="2", teacher="2")) == "weights has changed"
        assert changed_file(of(weights="1"), of(weights="2")) == "weights"
        assert directory.why_run("first", {**changed(1), "files": {"costs": "3"}}) == "first.seed: 0 -> 1"
        finish(directory, "first", INPUTS)  # as an older version wrote it
        assert directory.why_run("first", of(weights="1")) is None


def test_what_a_file_was_is_remembered_while_it_is_away(tmp_path: Path) -> None:
    def of(weights: str | None) -> dict[str, Any]:
        return {**INPUTS, "files": {"weights": weights}}

    def goes_on(old: Any, new: Any, _partial: Path) -> bool:
        return changed_file(old, new) is None

    with open_run_directory(tmp_path, STAGES) as directory:
        (directory.begin("first", of("1"), goes_on) / "half").touch()
        assert (directory.begin("first", of(None), goes_on) / "half").exists()
        with pytest.raises(UserError, match="weights has changed"):
            directory.refuse_to_drop("first", of("2"), goes_on)
        directory.complete("first", of(None))
        assert directory.why_run("first", of("2")) == "weights has changed"
        assert directory.why_run("first", of("1")) is None


def test_the_content_of_a_stage_changes_with_its_files_and_with_nothing_else(tmp_path: Path) -> None:
    with open_run_directory(tmp_path, STAGES) as directory:
        finish(directory, "first", INPUTS, "a")
        before = directory.content("first")
        finish(directory, "first", changed(1), "a")
        assert directory.content("first") == before
        finish(directory, "first", changed(1), "b")
        assert directory.content("first") != before


def never(_old: object, _new: object, _partial: Path) -> bool:
    return False


def test_an_interrupted_stage_resumes_only_with_the_same_inputs(tmp_path: Path) -> None:
    with open_run_directory(tmp_path, STAGES) as directory:
        out = directory.begin("first", INPUTS, never)
        (out / "checkpoint").write_text("half")
        (out / ".weights.abc.tmp").write_text("an atomic write that was killed")
        assert directory.why_run("first", INPUTS) == "was interrupted"
        out = directory.begin("first", INPUTS, never)
        assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "stage.json"]
        assert not (directory.begin("first", changed(1), never) / "checkpoint").exists()


def test_an_interrupted_stage_is_not_dropped_for_one_with_other_inputs(tmp_path: Path) -> None:
    with open_run_directory(tmp_path, STAGES) as directory:
        directory.refuse_to_drop("first", INPUTS, never)
        out = directory.begin("first", changed(1), never)
        directory.refuse_to_drop("first", INPUTS, never)  # it has written nothing yet
        (out / "checkpoint").write_text("half")
        directory.refuse_to_drop("first", changed(1), never)
        with pytest.raises(UserError, match=r"unfinished first stage .*\(first\.seed: 1 -> 0\).*--force"):
            directory.refuse_to_drop("first", INPUTS, never)
        assert (out / "checkpoint").read_text() == "half"


def test_an_interrupted_stage_goes_on_with_inputs_that_it_is_the_beginning_of(tmp_path: Path) -> None:
    asked: list[tuple[object, object, Path]] = []

    def always(old: object, new: object, partial: Path) -> bool:
        asked.append((old, new, partial))
        return True

    with open_run_directory(tmp_path, STAGES) as directory:
        out = directory.begin("first", INPUTS, always)
        (out / "checkpoint").write_text("half")
        directory.refuse_to_drop("first", changed(1), always)
        assert asked == [(INPUTS, changed(1), out)]
        assert (directory.begin("first", changed(1), always) / "checkpoint").exists()
        directory.complete("first", changed(1))
        assert directory.why_run("first", changed(1)) is None


def test_going_back_to_what_is_finished_keeps_an_interrupted_stage_with_other_inputs(tmp_path: Path) -> None:
    with open_run_directory(tmp_path, STAGES) as directory:
        finish(directory, "first", INPUTS)
        out = directory.begin("first", changed(1), never)
        (out / "checkpoint").write_text("half")
        directory.refuse_to_drop("first", INPUTS, never)  # nothing needs to run
        directory.discard_repetition("first", INPUTS)
        assert (out / "checkpoint").exists()
        directory.discard_repetition("first", changed(1))
        assert not out.exists()


def test_a_stage_that_starts_over_finds_an_empty_directory(tmp_path: Path) -> None:
    with open_run_directory(tmp_path, STAGES) as directory:
        (directory.begin("second", INPUTS, None) / "half").write_text("x")
        out = directory.begin("second", INPUTS, None)
        assert [path.name for path in out.iterdir()] == ["stage.json"]


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_a_stage_whose_files_were_altered_by_hand_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    with open_run_directory(tmp_path, STAGES) as directory:
        finish(directory, "first", INPUTS)
        file = directory.stage_dir("first") / "sub" / "file.txt"
        if damage == "remove":
            file.unlink()
        else:
            (file if damage == "change" else file.with_name("file.txt2")).write_text("other")
        with pytest.raises(UserError, match=r"file\.txt.*--from first"):
            directory.why_run("first", INPUTS)


def test_the_content_of_an_unfinished_stage_is_refused(tmp_path: Path) -> None:
    with open_run_directory(tmp_path, STAGES) as directory:
        directory.begin("first", INPUTS, never)
        with pytest.raises(UserError, match="no finished first stage"):
            directory.content("first")


def test_two_processes_do_not_write_one_run_directory(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        from pathlib import Path
        from pipeline.run_directory import open_run_directory
        with open_run_directory(Path({str(tmp_path)!r}), {STAGES!r}):
            print("locked", flush=True)
            input()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with (
            pytest.raises(UserError, match=f"in use by process {other.pid}: wait"),
            open_run_directory(tmp_path, STAGES),
        ):
            pass
        other.kill()
    with open_run_directory(tmp_path, STAGES):
        pass


def test_a_path_that_cannot_hold_a_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="choose another --out"), open_run_directory(file, STAGES):
        pass


def test_fingerprints_ignore_the_order_of_keys_and_nothing_else() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from pipeline.run_directory import open_run_directory

root, stages = Path(sys.argv[1]), ("first",)
STEPS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}

def finish(directory, inputs, text):
    out = directory.begin("first", inputs, None)
    (out / "file.txt").write_text(text)
    directory.complete("first", inputs)

def replace(run, kill_at):
    seen = 0
    def count(event, arguments):
        nonlocal seen
        if event in STEPS and str(run) in str(arguments[0]):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    with open_run_directory(run, stages) as directory:
        finish(directory, {"version": 2}, "new")

kill_at, status = 0, -1
while status:
    kill_at += 1
    run = root / str(kill_at)
    with open_run_directory(run, stages) as directory:
        finish(directory, {"version": 1}, "old")
    child = os.fork()
    if child == 0:
        replace(run, kill_at)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    with open_run_directory(run, stages) as directory:
        text = (run / "first" / "file.txt").read_text()
        finished = directory.why_run("first", {"version": 2}) is None
        assert text == ("new" if finished else "old"), (kill_at, text)
        if not finished:
            assert directory.why_run("first", {"version": 1}) is None, kill_at
            finish(directory, {"version": 2}, "new")
        assert directory.why_run("first", {"version": 2}) is None
        assert (run / "first" / "file.txt").read_text() == "new"
        left = sorted(path.name for path in run.iterdir())
        assert left == [".lock", "first"], (kill_at, left)
print(kill_at)
"""


def test_a_kill_at_any_step_leaves_the_old_stage_or_the_new_one_and_the_next_run_completes_it(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) > 15  # the steps that were killed: fewer would mean that the hook does not see them
