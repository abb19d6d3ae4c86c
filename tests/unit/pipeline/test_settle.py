"""What settling makes of a runner's times; the device is planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipeline.settle
from device.errors import TargetOfflineError
from pipeline.settle import Settled, settle
from results.statistics import SpeedUp
from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from tests.unit.tvm_build.fake_measurer import FACTS
from tests.unit.tvm_build.test_contest import GPU, alone_records, network, planted_ms
from tvm_build.precision import FLOAT32
from tvm_build.tuning.database import UNTUNED, read_database

__all__ = ["network"]


class PlantedRunner:
    """Runs nothing: a launch takes what its code says, a whole network `whole_ms`, and `check` is the test's."""

    def __init__(self, whole_ms: dict[str, float], check: Callable[[Path], None]) -> None:
        self._whole_ms = whole_ms
        self.check = check

    def profile(self, bundle: Path, **_: Any) -> Any:
        return SimpleNamespace(launches=[SimpleNamespace(median_ms=ms) for ms in planted_ms(bundle)])

    def bench(self, bundles: list[Path], **_: Any) -> Any:
        times = [self._whole_ms[bundle.stem] for bundle in bundles]
        return SimpleNamespace(
            bundles=[SimpleNamespace(total_ms=SimpleNamespace(median=ms), total_samples_ms=[ms] * 20) for ms in times]
        )

    def discard_bundles(self) -> None:
        pass


def settled(
    network: Path,
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    untuned_ms: float = 2.0,
    tuned_ms: float = 1.0,
    check: Callable[[Path], None] = lambda bundle: None,
) -> Settled:
    runner = PlantedRunner({"untuned": untuned_ms, "tuned": tuned_ms}, check)
    monkeypatch.setattr(pipeline.settle, "Runner", lambda target: runner)
    monkeypatch.setattr(pipeline.settle, "facts_of_target", lambda found: FACTS)
    target: Any = None
    (found,) = settle([network], database, target, gpu=GPU, precision=FLOAT32, reporter=SilentReporter())
    return found


@pytest.fixture
def database(network: Path, tmp_path: Path) -> Path:
    path = tmp_path / "db.jsonl"
    path.write_bytes(b"".join(record.line() for record in alone_records(network)))
    return path


def verdicts(database: Path) -> set[bool]:
    """Whether the contests of a database say that the untuned network won."""
    return {record.contest.endswith(UNTUNED) for record in read_database(database) if record.contest}


@pytest.mark.parametrize(("untuned_ms", "tuned_ms", "stays"), [(2.0, 1.0, False), (1.0, 2.0, True)])
def test_a_network_stays_untuned_where_that_is_faster(
    network: Path, database: Path, monkeypatch: pytest.MonkeyPatch, untuned_ms: float, tuned_ms: float, stays: bool
) -> None:
    found = settled(network, database, monkeypatch, untuned_ms=untuned_ms, tuned_ms=tuned_ms)
    assert (found.untuned_ms, found.tuned_ms, found.stays_untuned) == (untuned_ms, tuned_ms, stays)
    assert found.speed_up is not None
    assert found.speed_up.median == untuned_ms / tuned_ms
    assert ("it stays untuned" in str(found)) == stays
    assert verdicts(database) == {stays}


@pytest.mark.parametrize(
    ("ci95", "stays"), [((0.90, 0.99), True), ((0.99, 1.01), False), ((1.01, 1.10), False), ((0.98, 1.00), False)]
)
def test_chance_does_not_make_a_network_slower(ci95: tuple[float, float], stays: bool) -> None:
    assert Settled(Path("model.onnx"), 2, 1.0, 1.0, SpeedUp(sum(ci95) / 2, ci95)).stays_untuned == stays


def test_a_network_that_fails_with_what_was_found_stays_untuned(
    network: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(bundle: Path) -> None:
        if bundle.stem == "tuned":
            raise UserError("its output is wrong")

    found = settled(network, database, monkeypatch, check=check)
    assert found.stays_untuned
    assert "stays untuned, it fails with what was found: its output is wrong" in str(found)
    assert verdicts(database) == {True}


def test_a_phone_that_was_away_for_a_moment_is_no_verdict(
    network: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(bundle: Path) -> None:
        if bundle.stem == "tuned":
            raise TargetOfflineError("the connection was lost")

    with pytest.raises(TargetOfflineError):
        settled(network, database, monkeypatch, check=check)
    assert verdicts(database) == set()


def test_where_the_untuned_network_fails_as_well_nothing_is_written(
    network: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(bundle: Path) -> None:
        raise UserError(f"{bundle.stem}: the device went away")

    with pytest.raises(UserError, match="untuned: the device went away"):
        settled(network, database, monkeypatch, check=check)
    assert verdicts(database) == set()
