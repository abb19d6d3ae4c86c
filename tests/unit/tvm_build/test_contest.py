from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from structadmm.errors import InvariantError, UserError
from structadmm.progress import Reporter, SilentReporter
from tests.compile.onnx_models import conv, save, weights
from tests.unit.tvm_build.fake_measurer import FACTS, FakeMeasurer, dense_tasks
from tests.unit.tvm_build.test_tuning_session import run
from tvm_build.compile import compile_onnx
from tvm_build.explain import describe
from tvm_build.gpu import gpu_by_name
from tvm_build.kernels import Schedule, candidates, default_schedule
from tvm_build.ops import Conv2d, Operator, WinogradInput, WinogradOutput
from tvm_build.precision import FLOAT32
from tvm_build.tuning.contenders import Contender, contenders
from tvm_build.tuning.contest import Contest, Profile, hold_contest
from tvm_build.tuning.database import UNTUNED, TrialRecord, merge_databases, read_database
from tvm_build.tuning.measurer import CandidateTimes
from tvm_build.tuning.schedules import describe_schedule, schedule_line
from tvm_build.tuning.summary import summarize
from tvm_build.tuning.task_key import describe_operator, operator_key
from tvm_build.tuning.tasks import extract_tasks, fused_network
from tvm_build.tuning.tuned import TunedSchedules, load_tuned
from tvm_build.winograd import fastest_form, measured_forms_us, parts

GPU = gpu_by_name("opencl-cpu")
OP = Conv2d(1, 16, 8, 8, 16, (3, 3), padding=(1, 1, 1, 1))
OLDER, NEWER = "2026-01-02T00:00:00+00:00 aaaa", "2026-03-01T00:00:00+00:00 aaaa"


def record(
    ms: float, schedule: Schedule | None = None, op: Operator = OP, contest: str = "", fastest_ms: float | None = None
) -> TrialRecord:
    return TrialRecord(
        device=FACTS,
        target=GPU.name,
        dtype="float32",
        task=describe_operator(op),
        schedule=describe_schedule(schedule or default_schedule(op, GPU)),
        status="ok",
        times=CandidateTimes(min_ms=ms if fastest_ms is None else fastest_ms, median_ms=ms, p90_ms=ms),
        contest=contest,
    )


def tuned(*records: TrialRecord) -> TunedSchedules:
    return TunedSchedules(records, "db.jsonl", GPU, FLOAT32)


DEFAULT = default_schedule(OP, GPU)
FIRST, SECOND = [schedule for schedule in candidates(OP, GPU) if schedule != DEFAULT][:2]


def chosen(*records: TrialRecord) -> Schedule:
    found = tuned(*records).find(OP)
    assert found is not None
    return found.schedule


def test_the_newest_comparison_in_a_network_goes_before_others_and_before_what_was_measured_alone() -> None:
    alone = [record(3, DEFAULT), record(1, FIRST), record(2, SECOND)]
    assert chosen(*alone) == FIRST
    older = [record(3, DEFAULT, contest=OLDER), record(2, FIRST, contest=OLDER), record(1, SECOND, contest=OLDER)]
    assert chosen(*alone, *older) == chosen(*older, *alone) == SECOND
    newer = [record(1, DEFAULT, contest=NEWER), record(2, SECOND, contest=NEWER)]
    assert chosen(*alone, *newer, *older) == DEFAULT


FAST = CandidateTimes(min_ms=1e-3, median_ms=1e-3, p90_ms=1e-3)
OTHERS = "2026-03-02T00:00:00+00:00 bbbb"


def test_its_own_comparison_goes_before_those_of_other_networks() -> None:
    alone = [record(3, DEFAULT), record(1, FIRST), record(2, SECOND)]
    own = [record(3, DEFAULT, contest=NEWER), record(2, FIRST, contest=NEWER)]
    others = [record(3, DEFAULT, contest=OTHERS), record(1, SECOND, contest=OTHERS)]
    verdict = record(3, DEFAULT, contest=NEWER + UNTUNED)
    schedules = tuned(*alone, *own, *others)
    found = [schedules.for_network(digest).find(OP) for digest in ("aaaa", "bbbb", "cccc")]
    assert [each.schedule for each in found if each is not None] == [FIRST, SECOND, SECOND]
    # That the untuned network won is said of that network alone.
    schedules = tuned(*alone, verdict, *others)
    found = [schedules.for_network(digest).find(OP) for digest in ("aaaa", "bbbb")]
    assert [each.schedule for each in found if each is not None] == [DEFAULT, SECOND]
    found = [tuned(*alone, verdict).for_network(digest).find(OP) for digest in ("aaaa", "bbbb")]
    assert [each.schedule for each in found if each is not None] == [DEFAULT, FIRST]


def test_a_network_is_compiled_by_its_own_comparison(network: Path, tmp_path: Path) -> None:
    alone = alone_records(network)
    contest = contest_of(network, alone, tmp_path / "scratch")
    others = [
        each.model_copy(update={"contest": "2099-01-01T00:00:00+00:00 bbbb", "contest_lines": None})
        for each in contest.verdict
    ]
    for name, records in (("own", contest.records), ("both", (*contest.records, *others))):
        compile_onnx(network, tmp_path / f"{name}.clbundle", target=GPU.name, tuned=tuned(*alone, *records))
    for file in ("plan.txt", "kernels.cl"):
        assert (tmp_path / "own.clbundle" / file).read_bytes() == (tmp_path / "both.clbundle" / file).read_bytes()


def among(network_bytes: int, *records: TrialRecord) -> list[TrialRecord]:
    return [each.model_copy(update={"network_bytes": network_bytes, "runs": 15}) for each in records]


def test_what_was_measured_among_as_many_weights_counts_before_all_else() -> None:
    small = among(1 << 20, record(3, DEFAULT), record(1, FIRST), record(2, SECOND))
    large = among(1 << 25, record(9, DEFAULT), record(8, FIRST), record(5, SECOND))
    unsaid = [record(0.5, SECOND)]
    for own, records, taken in (
        (1 << 20, [*small, *large], FIRST),
        ((1 << 21) - 1, [*small, *large], FIRST),
        (1 << 25, [*small, *large], SECOND),
        (1 << 22, [*small, *large], FIRST),  # the nearest, where there is none of its own
        (1 << 40, [*small, *large], SECOND),
        (1 << 20, [*small, *unsaid], SECOND),
        (1 << 25, [*small, *unsaid], SECOND),
    ):
        found = tuned(*records).among_weights(own).find(OP)
        assert found is not None
        assert found.schedule == taken
    # Of one schedule, seen twice, the faster time is one place of the ranking.
    contender = Contender([*small, record(1.5, FIRST)], "db.jsonl", GPU, FLOAT32, rank=1).among_weights(1 << 20)
    found = contender.find(OP)
    assert found is not None
    assert found.schedule == SECOND


def test_a_network_is_compiled_by_what_was_measured_among_as_many_weights(network: Path, tmp_path: Path) -> None:
    own = among(4 * (16 * 8 + 12 * 16) * 9, *alone_records(network))
    others = among(1 << 25, *(each.model_copy(update={"times": FAST}) for each in own[-1::-2]))
    for name, records in (("own", own), ("both", [*own, *others])):
        compile_onnx(network, tmp_path / f"{name}.clbundle", target=GPU.name, tuned=tuned(*records))
    for file in ("plan.txt", "kernels.cl"):
        assert (tmp_path / "own.clbundle" / file).read_bytes() == (tmp_path / "both.clbundle" / file).read_bytes()


def test_merging_keeps_trials_among_other_weights_and_no_time_of_what_was_wrong(tmp_path: Path) -> None:
    wrong = record(1, FIRST).model_copy(update={"status": "wrong", "times": None, "message": "why"})
    trials = [*among(1 << 20, record(1, FIRST), record(3, SECOND)), *among(1 << 25, wrong, record(2, SECOND))]
    path = tmp_path / "db.jsonl"
    path.write_bytes(b"".join(each.line() for each in trials))
    assert merge_databases([path, path], path) == 4
    assert read_database(path) == trials
    found = load_tuned(path, target=GPU.name, dtype="float32").among_weights(1 << 20).find(OP)
    assert found is not None
    assert (found.schedule, found.measured_us) == (SECOND, 3000.0)


def test_what_is_not_clearly_faster_in_the_network_stays_as_it_was() -> None:
    assert chosen(record(2, DEFAULT, contest=NEWER), record(1.95, FIRST, contest=NEWER)) == DEFAULT
    assert chosen(record(2, DEFAULT, contest=NEWER), record(1.93, FIRST, contest=NEWER)) == FIRST


def test_in_a_network_the_median_counts() -> None:
    lucky = record(3, FIRST, contest=NEWER, fastest_ms=0.1)
    assert chosen(lucky, record(2, DEFAULT, contest=NEWER, fastest_ms=1.9)) == DEFAULT


def test_forms_are_held_against_each_other_within_one_comparison_only() -> None:
    """What takes 5 ms in a network took 4 alone: against times of its own kind it wins, against others it would not."""
    forms: dict[int | None, Sequence[Operator]] = {None: (OP,), 2: parts(OP, 2).launches, 4: parts(OP, 4).launches}

    def times(contest: str, **total_ms: float) -> list[TrialRecord]:
        by_name = {"direct": None, "two": 2, "four": 4}
        return [
            record(ms / len(forms[by_name[name]]), op=op, contest=contest)
            for name, ms in total_ms.items()
            for op in forms[by_name[name]]
        ]

    def form(*records: TrialRecord) -> int | None:
        return fastest_form(measured_forms_us(OP, FLOAT32, tuned(*records)))

    alone = times("", direct=6, two=4.5, four=4)
    assert form(*alone) == 4
    assert form(*alone, *times(NEWER, direct=7, two=5, four=6)) == 2
    assert form(*alone, *times(NEWER, direct=7, two=5)) == 2
    assert form(*alone, *times(NEWER, direct=5, two=7)) is None
    # A comparison that had one of them only says nothing about the others.
    assert form(*alone, *times(NEWER, direct=1)) == 4
    assert form(*alone, *times(OLDER, direct=7, two=5), *times(NEWER, two=9)) == 2


def test_comparisons_survive_merging_and_count_as_no_trials(tmp_path: Path) -> None:
    records = [record(3, DEFAULT), record(1, FIRST), record(3, FIRST, contest=NEWER), record(2, DEFAULT, contest=NEWER)]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_bytes(b"".join(each.line() for each in records))
    assert merge_databases(paths, tmp_path / "out.jsonl") == 2
    assert read_database(tmp_path / "out.jsonl") == records
    (row,) = summarize(tmp_path / "out.jsonl")
    assert (row["trials"], row["best_ms"]) == (2, 1.0)


def test_a_summary_says_what_was_fastest_alone_and_what_in_the_newest_comparison(tmp_path: Path) -> None:
    records = [record(3, DEFAULT), record(1, FIRST), record(2, SECOND)]
    newer = [record(3, DEFAULT, contest=NEWER), record(2.5, FIRST, contest=NEWER), record(2, SECOND, contest=NEWER)]
    older = [record(1, FIRST, contest=OLDER)]
    verdict = record(4, DEFAULT, contest=NEWER + UNTUNED)
    path = tmp_path / "db.jsonl"
    for contests, settled, settled_ms in (
        ([], "", None),
        ([*newer, *older], describe(SECOND), 2.0),
        ([*older, verdict], "untuned", 4.0),
    ):
        path.write_bytes(b"".join(each.line() for each in (*records, *contests)))
        (row,) = summarize(path)
        assert (row["schedule"], row["best_ms"]) == (describe(FIRST), 1.0)
        assert (row["settled"], row["settled_ms"]) == (settled, settled_ms)


@pytest.mark.parametrize(
    ("times_ms", "first", "second"),
    [
        ({None: 4.0, 2: 2.0, 4: 3.0}, 2, 4),
        # Within 3 %, compilation takes the direct form, and so would the one that is second by its time.
        ({None: 4.0, 2: 3.95, 4: 3.0}, 4, None),
        ({None: 4.0, 2: 3.95, 4: 5.0}, None, 2),
        ({None: 4.0, 2: 3.95, 4: 3.93}, None, 4),
        ({None: 4.0}, None, None),
    ],
)
def test_the_second_form_is_another_one_than_compilation_takes_first(
    times_ms: dict[int | None, float], first: int | None, second: int | None
) -> None:
    forms = {None: (OP,), 2: parts(OP, 2).launches, 4: parts(OP, 4).launches}
    gaps_ms = {form: GPU.between_us(len(forms[form])) / 1e3 for form in times_ms}
    records = [
        record((ms - gaps_ms[form]) / len(forms[form]), op=op) for form, ms in times_ms.items() for op in forms[form]
    ]
    for rank, form in ((0, first), (1, second)):
        contender = Contender(records, "db.jsonl", GPU, FLOAT32, form=rank)
        assert fastest_form(measured_forms_us(OP, FLOAT32, contender)) == form


def test_contenders_are_the_first_ranks_the_second_form_and_untuned_forms() -> None:
    third = next(schedule for schedule in candidates(OP, GPU) if schedule not in (DEFAULT, FIRST, SECOND))
    records = [record(10.0 + rank, schedule) for rank, schedule in enumerate((FIRST, SECOND, third, DEFAULT))]
    records += [record(ms, op=op) for tile, ms in ((2, 1.0), (4, 2.0)) for op in parts(OP, tile).launches]
    taken = []
    for contender in contenders(records, "db.jsonl", GPU, FLOAT32):
        found = contender.find(OP)
        assert found is not None
        forms_us = {} if contender.measured_us([OP]) is None else measured_forms_us(OP, FLOAT32, contender)
        taken.append((found.schedule, fastest_form(forms_us)))
    assert taken == [(FIRST, 2), (SECOND, 2), (third, 2), (FIRST, 4), (FIRST, None)]


def test_a_comparison_that_was_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    """As a process leaves it that is killed while it writes, or a disk that is full."""
    alone = [record(3, DEFAULT), record(1, FIRST)]
    whole = [
        record(ms, schedule, contest=NEWER).model_copy(update={"contest_lines": 2})
        for ms, schedule in ((1, DEFAULT), (2, FIRST))
    ]
    path = tmp_path / "db.jsonl"
    for contest, taken in ((whole, DEFAULT), (whole[:1], FIRST)):
        path.write_bytes(b"".join(each.line() for each in (*alone, *contest)))
        for _ in range(2):
            found = load_tuned(path, target=GPU.name, dtype="float32").find(OP)
            assert found is not None
            assert found.schedule == taken
            merge_databases([path], path)


def test_a_schedule_that_a_trial_found_wrong_is_not_taken_from_a_comparison_before(tmp_path: Path) -> None:
    contest = [record(3, DEFAULT, contest=NEWER), record(1, FIRST, contest=NEWER), record(2, SECOND, contest=NEWER)]
    wrong = record(1, FIRST).model_copy(update={"status": "wrong", "times": None, "message": "why"})
    path = tmp_path / "db.jsonl"
    path.write_bytes(b"".join(each.line() for each in (record(1, FIRST), *contest, wrong)))
    found = load_tuned(path, target=GPU.name, dtype="float32").find(OP)
    assert found is not None
    assert found.schedule == SECOND


def test_a_session_does_not_take_comparisons_for_trials(tmp_path: Path) -> None:
    database = tmp_path / "db.jsonl"
    run(database, FakeMeasurer(), 8, dense_tasks()[:1])
    (first, *_) = read_database(database)
    contested = first.model_copy(update={"contest": NEWER, "times": CandidateTimes(min_ms=0, median_ms=0, p90_ms=0)})
    with database.open("ab") as stream:
        stream.write(contested.line())
    result = run(database, FakeMeasurer(), 12, dense_tasks()[:1])
    assert (result.known_trials, result.new_trials) == (8, 4)
    assert result.tasks[0].best_ms is not None
    assert result.tasks[0].best_ms >= 1


@pytest.fixture
def network(tmp_path: Path) -> Path:
    constants = {"a.weight": weights(16, 8, 3, 3), "b.weight": weights(12, 16, 3, 3, seed=1)}
    nodes = [conv("a", "x", "y", pads=[1] * 4), conv("b", "y", "z", pads=[1] * 4)]
    return save(tmp_path / "model.onnx", nodes, {"x": [1, 8, 8, 8]}, ["z"], constants)


def planted_ms(bundle: Path) -> list[float]:
    """A time for each launch that follows from its kernel's code alone, between 1 and 2 ms."""
    source = (bundle / "kernels.cl").read_text()
    kernels = {re.findall(r"void (\w+)", part)[0]: part.strip() for part in source.split("__kernel ")[1:]}
    launches = json.loads((bundle / "manifest.json").read_text())["layers"]
    codes = [kernels[launch["kernel"]].replace(launch["kernel"], "kernel") for launch in launches]
    return [1 + hashlib.sha256(code.encode()).digest()[0] / 256 for code in codes]


def alone_records(network: Path) -> list[TrialRecord]:
    """Five schedules for each launch of each form, as if measured, in an order that the planted times do not have."""
    tasks = extract_tasks([fused_network(network, GPU, FLOAT32)], GPU, FLOAT32)
    records = []
    for task in tasks:
        schedules = [default_schedule(task.op, GPU), *candidates(task.op, GPU)[:4]]
        distinct = {str(schedule): schedule for schedule in schedules}
        records += [
            record(1 + 0.1 * rank, schedule, task.op) for rank, schedule in enumerate(reversed(distinct.values()))
        ]
    return records


def contest_of(
    network: Path,
    records: list[TrialRecord],
    scratch: Path,
    bundles: list[Path] | None = None,
    profile: Profile = planted_ms,
    reporter: Reporter | None = None,
) -> Contest:
    def observed(bundle: Path) -> Sequence[float]:
        if bundles is not None:
            bundles.append(bundle)
        return profile(bundle)

    scratch.mkdir()
    return hold_contest(
        network,
        records,
        observed,
        source="db.jsonl",
        device=FACTS,
        gpu=GPU,
        precision=FLOAT32,
        scratch=scratch,
        reporter=reporter or SilentReporter(),
        rounds=3,
    )


def test_what_is_compiled_after_a_comparison_is_as_fast_as_the_best_of_each_layer_in_it(
    network: Path, tmp_path: Path
) -> None:
    alone = alone_records(network)
    turns: list[Path] = []
    contest = contest_of(network, alone, tmp_path / "scratch", turns)
    entries = sorted(set(turns))
    assert contest.networks == len(entries) > 3
    assert all(turns.count(entry) == 3 for entry in entries)
    assert len({turns[0], turns[len(entries)], turns[2 * len(entries)]}) == 3  # somebody else begins each round

    settled = tmp_path / "settled.clbundle"
    schedules = tuned(*alone, *contest.records)
    compile_onnx(network, settled, target=GPU.name, tuned=schedules)
    before = tmp_path / "before.clbundle"
    compile_onnx(network, before, target=GPU.name, tuned=tuned(*alone))

    def cost_ms(bundle: Path) -> float:
        launches = planted_ms(bundle)
        return sum(launches) + GPU.between_us(len(launches)) / 1e3

    for records in (contest.records, contest.verdict):
        assert {each.contest_lines for each in records} == {len(records)}
    # 3 % of two layers of at most 3 ms each: what is not clearly faster stays untuned, schedules and forms alike.
    assert cost_ms(settled) <= min(map(cost_ms, entries)) + 2 * 0.03 * 2 * 3
    assert cost_ms(settled) < cost_ms(before)


def test_a_comparison_keeps_what_every_launch_of_every_contender_took(network: Path, tmp_path: Path) -> None:
    alone = alone_records(network)
    launches: dict[tuple[str, str], float] = {}
    for number, contender in enumerate((None, *contenders(alone, "db.jsonl", GPU, FLOAT32))):
        bundle = tmp_path / f"{number}.clbundle"
        lowered = compile_onnx(network, bundle, target=GPU.name, tuned=contender).lowered
        for launch, ms in zip(lowered, planted_ms(bundle), strict=True):
            if isinstance(launch.op, Conv2d | WinogradInput | WinogradOutput):
                launches[operator_key(launch.op), schedule_line(describe_schedule(launch.schedule))] = ms
    assert len(launches) > 8
    records = contest_of(network, alone, tmp_path / "scratch").records
    assert {(each.task_key, schedule_line(each.schedule)): each.cost_ms for each in records} == launches


def test_a_network_of_which_nothing_was_found_is_not_compared(network: Path, tmp_path: Path) -> None:
    tasks = extract_tasks([fused_network(network, GPU, FLOAT32)], GPU, FLOAT32)
    records = [record(1, op=task.op) for task in tasks if "direct" in task.forms]
    turns: list[Path] = []
    assert contest_of(network, records, tmp_path / "scratch", turns) == Contest(1, ())
    assert turns == []


def test_times_that_do_not_belong_to_the_launches_are_refused(network: Path, tmp_path: Path) -> None:
    with pytest.raises(InvariantError, match="2 times of"):
        contest_of(network, alone_records(network), tmp_path / "scratch", profile=lambda bundle: [1.0, 2.0])


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_contender_that_fails_is_left_out_with_all_that_it_has_shown(network: Path, tmp_path: Path) -> None:
    turns: list[Path] = []

    def profile(bundle: Path) -> Sequence[float]:
        if bundle.stem != "contender1":
            return planted_ms(bundle)
        if turns.count(bundle) == 2:
            raise UserError("its output is wrong")
        return [0.5] * len(planted_ms(bundle))

    listener = Listener()
    contest = contest_of(network, alone_records(network), tmp_path / "scratch", turns, profile, listener)
    assert contest.networks == len(set(turns)) - 1 > 2
    assert [turns.count(entry) for entry in sorted(set(turns))].count(2) == 1
    assert min(each.cost_ms or 0 for each in contest.records) >= 1
    (line,) = listener.lines
    assert "model.onnx is left out" in line
    assert "its output is wrong" in line


def test_where_every_contender_fails_the_untuned_network_wins(network: Path, tmp_path: Path) -> None:
    def profile(bundle: Path) -> Sequence[float]:
        if bundle.stem != "contender0":
            raise UserError("its output is wrong")
        return planted_ms(bundle)

    contest = contest_of(network, alone_records(network), tmp_path / "scratch", profile=profile)
    assert contest.networks == 1
    assert contest.records == contest.verdict != ()


def test_an_untuned_network_that_fails_is_an_error(network: Path, tmp_path: Path) -> None:
    def profile(bundle: Path) -> Sequence[float]:
        if bundle.stem == "contender0":
            raise UserError("the device went away")
        return planted_ms(bundle)

    with pytest.raises(UserError, match="went away"):
        contest_of(network, alone_records(network), tmp_path / "scratch", profile=profile)


def test_where_the_untuned_network_won_its_schedules_and_forms_stay() -> None:
    forms: dict[int | None, Sequence[Operator]] = {None: (OP,), 4: parts(OP, 4).launches}
    alone = [record(9, DEFAULT), record(1, FIRST), *(record(0.1, op=op) for op in forms[4])]
    older = [record(9, DEFAULT, contest=OLDER), *(record(0.1, op=op, contest=OLDER) for op in forms[4])]
    won = record(9, DEFAULT, contest=NEWER + UNTUNED)
    assert chosen(*alone) == FIRST
    assert fastest_form(measured_forms_us(OP, FLOAT32, tuned(*alone, *older))) == 4
    assert chosen(*alone, *older, won) == DEFAULT
    assert fastest_form(measured_forms_us(OP, FLOAT32, tuned(*alone, *older, won))) is None
    # Of kept columns and all of them, too: the untuned choice is then the cost model's.
    sparse = replace(OP, columns=tuple(range(0, 144, 2)))
    both = [*alone, record(1, op=sparse)]
    assert tuned(*both).measured_us([OP, sparse]) is not None
    assert tuned(*both, won).measured_us([OP, sparse]) is None
    # A later contest counts again.
    later = [record(9, DEFAULT, contest="2026-04"), record(1, SECOND, contest="2026-04")]
    assert chosen(*alone, won, *later) == SECOND


def test_a_verdict_has_the_launches_of_the_untuned_network(network: Path, tmp_path: Path) -> None:
    alone = alone_records(network)
    contest = contest_of(network, alone, tmp_path / "scratch")
    untuned, judged = tmp_path / "untuned.clbundle", tmp_path / "judged.clbundle"
    compile_onnx(network, untuned, target=GPU.name)
    compile_onnx(network, judged, target=GPU.name, tuned=tuned(*alone, *contest.verdict))
    for name in ("plan.txt", "kernels.cl", "weights.bin"):
        assert (untuned / name).read_bytes() == (judged / name).read_bytes()
