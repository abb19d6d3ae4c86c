"""A benchmark of a part of what its record is about does not take that record's place."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from structadmm.errors import InvariantError

RECORD = Path("results/reference/compiler/some")


@pytest.fixture(scope="module")
def host_record() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "host_record.py"
    spec = importlib.util.spec_from_file_location("host_record", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser()
    found.add_argument("--runs", type=int, default=30)
    found.add_argument("--networks", nargs="+", default=["a", "b"])
    return found


@pytest.mark.parametrize("command", [[], ["--runs", "30"], ["--networks", "a", "b"]])
def test_the_records_own_options_write_it(host_record: ModuleType, command: list[str]) -> None:
    assert host_record.record_options(parser(), RECORD, command).out == RECORD


def test_other_options_need_a_folder_of_their_own(
    host_record: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as status:
        host_record.record_options(parser(), RECORD, ["--networks", "a"])
    assert status.value.code == 2
    assert f"{RECORD} holds the record of a run without --networks: give --out" in capsys.readouterr().err
    options = host_record.record_options(parser(), RECORD, ["--networks", "a", "--out", str(tmp_path)])
    assert options.out == tmp_path
    assert options.made_by.endswith(f" --networks a --out {tmp_path}")


def test_a_run_that_measured_nothing_leaves_the_record_as_it_was(host_record: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("what was measured before")
    with pytest.raises(InvariantError, match="measured nothing"):
        host_record.write_record(tmp_path, made_by="python x.py", kind="host", rows=[], table="")
    assert (tmp_path / "results.json").read_text() == "what was measured before"
