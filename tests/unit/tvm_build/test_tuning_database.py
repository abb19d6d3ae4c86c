from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from structadmm.errors import UserError
from tests.unit.tvm_build.fake_measurer import FACTS
from tvm_build.gpu import gpu_by_name
from tvm_build.kernels import default_schedule
from tvm_build.kernels.dense import DenseSchedule
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator
from tvm_build.tuning.database import TrialRecord, merge_databases, open_database, read_database
from tvm_build.tuning.measurer import CandidateTimes, Status
from tvm_build.tuning.schedules import describe_schedule
from tvm_build.tuning.task_key import describe_operator, operator_key, read_operator
from tvm_build.tuning.tuned import load_tuned
from tvm_build.winograd import parts

CONV = Conv2d(1, 8, 4, 4, 8, (3, 3), columns=(0, 1), shortcut=Conv2d(1, 8, 2, 2, 8, (1, 1)))


def record(
    split: int = 8,
    ms: float = 1.0,
    *,
    status: Status = "ok",
    op: Dense | Conv2d | None = None,
    target: str = "adreno-640",
    driver_family: str = FACTS.driver_family,
) -> TrialRecord:
    assert status != "lost"
    return TrialRecord(
        device=FACTS.model_copy(update={"driver_family": driver_family}),
        target=target,
        dtype="float32",
        task=describe_operator(op or Dense(1, 64, 24)),
        schedule=describe_schedule(DenseSchedule(tiles=4, split=split)),
        status=status,
        times=CandidateTimes(min_ms=ms, median_ms=ms, p90_ms=ms) if status == "ok" else None,
        message="" if status == "ok" else "why",
    )


def write(path: Path, *records: TrialRecord) -> Path:
    path.write_bytes(b"".join(item.line() for item in records))
    return path


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = [record(8, 1.5), record(4, status="crashed"), record(2, 0.75)]
    with open_database(tmp_path / "db.jsonl") as (known, writer):
        assert known == []
        writer.append(records[0])
        writer.append(*records[1:])
    assert read_database(tmp_path / "db.jsonl") == records


def test_a_file_cut_off_anywhere_loses_at_most_its_last_record_and_can_be_continued(tmp_path: Path) -> None:
    records = [record(8, 1.5), record(4, 2.5)]
    data = b"".join(item.line() for item in records)
    for length in (*range(len(records[0].line()), len(data), 29), len(data) - 1, len(data)):
        path = tmp_path / "db.jsonl"
        path.write_bytes(data[:length])
        whole = records if length == len(data) else records[:1]
        assert read_database(path) == whole
        with open_database(path) as (known, writer):
            assert known == whole
            writer.append(record(2, 3.5))
        assert read_database(path) == [*whole, record(2, 3.5)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"not json\n", "line 2 is no tuning record"),
        (b"[1]\n", "line 2 is no tuning record"),
        (b'{"schema": 2}\n', "line 2 has schema 2"),
        (b'{"schema": 1}\n', "line 2: device"),
        (record(status="ok").line().replace(b'"ok"', b'"wrong"'), "contradicts its times"),
        (record().line().replace(b'"min_ms":1.0', b'"min_ms":-1.0'), "min_ms"),
        (record().line().replace(b'"tiles":4', b'"tiles":0'), "line 2: DenseSchedule.tiles: got 0"),
        (record().line().replace(b'"lanes":4', b'"lanes":3'), "line 2: DenseSchedule.lanes: got 3"),
        (record().line().replace(b'"buffer"', b'"nonsense"'), "line 2: DenseSchedule.weights: got 'nonsense'"),
        (record().line().replace(b'"Dense"', b'"Conv2d"'), "line 2: Conv2d.in_channels: Field required"),
        (record().line().replace(b'"Dense"', b'"Later"'), "line 2: unknown operator 'Later'"),
        (record().line().replace(b'"in_features":64', b'"in_features":"64"'), "line 2: Dense.in_features"),
        (record(op=CONV).line().replace(b'"in_height":4', b'"in_height":0'), "line 2: Conv2d has a size that no layer"),
        (record(op=CONV).line().replace(b'"kept":2', b'"kept":"2"'), "line 2: Conv2d.kept"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "db.jsonl"
    path.write_bytes(record().line() + line)
    with pytest.raises(UserError, match=complaint):
        read_database(path)
    with pytest.raises(UserError, match=complaint), open_database(path):
        pass
    assert path.read_bytes() == record().line() + line


def test_two_sessions_do_not_write_one_database(tmp_path: Path) -> None:
    with (
        open_database(tmp_path / "db.jsonl"),
        pytest.raises(UserError, match="another session is writing"),
        open_database(tmp_path / "db.jsonl"),
    ):
        pass


def test_a_database_in_use_is_not_replaced_by_merging(tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", record(4))
    with open_database(tmp_path / "db.jsonl") as (_, writer):
        writer.append(record(8))
        with pytest.raises(UserError, match="another session is writing"):
            merge_databases([tmp_path / "db.jsonl", other], tmp_path / "db.jsonl")
        writer.append(record(2))
    assert read_database(tmp_path / "db.jsonl") == [record(8), record(2)]


def test_a_database_that_was_replaced_while_it_was_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "db.jsonl", record(8))
    lock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        merge_databases([path, write(tmp_path / "other.jsonl", record(4))], path)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with open_database(path) as (known, writer):
        assert known == [record(8), record(4)]
        writer.append(record(2))
    assert read_database(path) == [record(8), record(4), record(2)]


def test_merging_keeps_each_trial_once_and_the_fastest_result_of_what_was_always_right(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", record(8, 2.0), record(4, status="timed_out"), record(2, 1.0))
    second = write(tmp_path / "b.jsonl", record(8, 1.5), record(4, 3.0), record(2, 1.25))
    other = write(tmp_path / "c.jsonl", record(8, 9.0, driver_family="qualcomm E031.40"), record(2, status="wrong"))
    assert merge_databases([first, second, other], first) == 4
    expected = [
        record(8, 1.5),
        record(4, 3.0),
        record(2, status="wrong"),
        record(8, 9.0, driver_family="qualcomm E031.40"),
    ]
    assert read_database(first) == expected


@pytest.mark.parametrize("bad", ["wrong", "crashed"])
def test_what_failed_once_is_not_trusted(tmp_path: Path, bad: Status) -> None:
    for trials in ((record(4, 1.0), record(4, status=bad)), (record(4, status=bad), record(4, 1.0))):
        path = write(tmp_path / "db.jsonl", record(8, 2.0), *trials)
        found = load_tuned(path, target="adreno-640", dtype="float32").find(Dense(1, 64, 24))
        assert found is not None
        assert found.schedule == DenseSchedule(tiles=4, split=8)
        assert merge_databases([path], path) == 2
        assert read_database(path) == [record(8, 2.0), record(4, status=bad)]


def test_merging_a_malformed_database_writes_nothing(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", record())
    (tmp_path / "b.jsonl").write_bytes(b"{}\n")
    with pytest.raises(UserError, match=r"b\.jsonl"):
        merge_databases([good, tmp_path / "b.jsonl"], tmp_path / "c.jsonl")
    assert not (tmp_path / "c.jsonl").exists()


def test_the_fastest_candidate_that_works_is_what_compilation_gets(tmp_path: Path) -> None:
    path = write(tmp_path / "db.jsonl", record(8, 2.0), record(4, 1.0), record(2, 1.5), record(1, status="wrong"))
    found = load_tuned(path, target="adreno-640", dtype="float32").find(Dense(1, 64, 24))
    assert found is not None
    assert (found.schedule, found.measured_us) == (DenseSchedule(tiles=4, split=4), 1000.0)


def test_candidates_are_compared_by_their_fastest_runs(tmp_path: Path) -> None:
    disturbed = record(4).model_copy(update={"times": CandidateTimes(min_ms=1.0, median_ms=5.0, p90_ms=9.0)})
    path = write(tmp_path / "db.jsonl", disturbed, record(8, 2.0))
    found = load_tuned(path, target="adreno-640", dtype="float32").find(Dense(1, 64, 24))
    assert found is not None
    assert (found.schedule, found.measured_us) == (DenseSchedule(tiles=4, split=4), 1000.0)


@pytest.mark.parametrize(("ahead", "taken"), [(0.98, False), (0.9, True)])
def test_an_untuned_schedule_stays_until_it_is_clearly_beaten(tmp_path: Path, ahead: float, taken: bool) -> None:
    op = Dense(1, 64, 24)
    default = default_schedule(op, gpu_by_name("adreno-640"))
    other = DenseSchedule(tiles=default.tiles, split=default.split // 2)
    records = [
        record(1, ms).model_copy(update={"schedule": describe_schedule(schedule)})
        for schedule, ms in ((default, 1.0), (other, ahead))
    ]
    found = load_tuned(write(tmp_path / "db.jsonl", *records), target="adreno-640", dtype="float32").find(op)
    assert found is not None
    assert found.schedule == (other if taken else default)
    assert found.measured_us == pytest.approx(1000 * (ahead if taken else 1.0))


@pytest.mark.parametrize("split", [1024, 3])
def test_a_schedule_beyond_its_layers_space_is_passed_over(tmp_path: Path, split: int) -> None:
    """The device cannot hold one, and no search offers the other."""
    path = write(tmp_path / "db.jsonl", record(8, 2.0), record(split, 1.0))
    found = load_tuned(path, target="adreno-640", dtype="float32").find(Dense(1, 64, 24))
    assert found is not None
    assert (found.schedule, found.measured_us) == (DenseSchedule(tiles=4, split=8), 2000.0)


@pytest.mark.parametrize(
    "op",
    [
        replace(CONV, columns=None),
        Dense(1, 40, 10, input_is_c4=True, pooled_pixels=4),
        GlobalAverage(1, 8, 4, 4),
        *parts(Conv2d(1, 8, 8, 8, 10, (3, 3), padding=(1, 1, 1, 1), activation="relu"), 2).launches,
    ],
)
def test_operators_are_read_as_they_were_described(op: Operator) -> None:
    assert read_operator(json.loads(operator_key(op))) == op
    assert read_operator(describe_operator(CONV)) is None


def test_a_layer_that_was_not_tuned_is_not_found(tmp_path: Path) -> None:
    path = write(tmp_path / "db.jsonl", record())
    assert load_tuned(path, target="adreno-640", dtype="float32").find(Dense(1, 64, 28)) is None


def test_of_two_devices_the_one_with_more_layers_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    newer = {"driver_family": "qualcomm E031.40"}
    path = write(
        tmp_path / "db.jsonl",
        record(8, 1.0),
        record(4, 2.0, **newer),  # type: ignore[arg-type]
        record(4, 2.0, op=Dense(1, 8, 8), **newer),  # type: ignore[arg-type]
    )

    def split(device: str | None) -> int:
        found = load_tuned(path, target="adreno-640", dtype="float32", device=device).find(Dense(1, 64, 24))
        assert found is not None
        return int(found.schedule.split)

    assert split(None) == 4
    assert split("E031.37") == 8
    with pytest.raises(UserError, match=r"E031.37.*E031.40.*none of them is 'E050'"):
        split("E050")


@pytest.mark.parametrize(
    ("target", "dtype", "complaint"),
    [
        ("adreno-730", "float32", "was tuned for adreno-640, expected adreno-730"),
        ("adreno-640", "float16", "was tuned in float32, expected float16"),
    ],
)
def test_a_database_for_something_else_is_refused(tmp_path: Path, target: str, dtype: str, complaint: str) -> None:
    path = write(tmp_path / "db.jsonl", record())
    with pytest.raises(UserError, match=complaint):
        load_tuned(path, target=target, dtype=dtype)


@pytest.mark.parametrize(("content", "complaint"), [(b"", "no trial yet"), (record(status="wrong").line(), "works")])
def test_a_database_without_a_success_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "db.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        load_tuned(tmp_path / "db.jsonl", target="adreno-640", dtype="float32")


def test_lists_of_columns_of_one_structure_are_one_task() -> None:
    def sparse(*columns: int) -> Conv2d:
        return Conv2d(1, 8, 4, 4, 8, (3, 3), columns=columns)

    def key(*columns: int) -> str:
        return operator_key(sparse(*columns))

    assert key(0, 9, 18, 27) == key(1, 10, 19, 28)
    assert key(0, 9, 18, 27) != key(0, 9, 18)
    assert key(0, 9, 18, 27) != key(0, 1, 2, 3)  # as many columns, of four blocks instead of one


def test_a_full_disk_names_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db.jsonl"

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_database(path) as (_, writer):
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"db\.jsonl"):
            writer.append(record())
