"""The last part of tuning: schedules that were found layer by layer are settled within the whole network."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from device.candidates import facts_of_target
from device.errors import TargetOfflineError, TargetRefusedError
from device.runner_client import Runner
from device.target import Target
from results.statistics import SpeedUp, paired_speed_up
from structadmm.errors import StructadmmError, UserError
from structadmm.progress import Reporter
from tvm_build.compile import compile_onnx
from tvm_build.gpu import Gpu
from tvm_build.precision import Precision
from tvm_build.tuning.contest import hold_contest
from tvm_build.tuning.database import TrialRecord, open_database, usable_records
from tvm_build.tuning.measurer import DeviceFacts
from tvm_build.tuning.tuned import TunedSchedules

_RUNS = 20
_ROUNDS = 200
_PROFILE_S = 900.0
"""For a network's kernels to be built, which a phone may take minutes for, and a profile: more is a hang."""

_GONE = (TargetOfflineError, TargetRefusedError)
"""What says something of the way to the device or its disk, and nothing of a network."""


@dataclass(frozen=True)
class Settled:
    """One network before and after tuning.

    Attributes:
        network: the ONNX file.
        compared: networks that took turns; 1 where what was found is what is compiled anyway, and nothing was timed.
        untuned_ms: median of one inference as it is compiled without a database; None where nothing was timed.
        tuned_ms: and with what was found.
        speed_up: of the tuned one, by rounds.
        kind: what the times are: host figures, or a phone's.
        failure: how the network failed with what was found, empty where it did not; nothing was timed then.
    """

    network: Path
    compared: int
    untuned_ms: float | None = None
    tuned_ms: float | None = None
    speed_up: SpeedUp | None = None
    kind: str = ""
    failure: str = ""

    @property
    def stays_untuned(self) -> bool:
        """Whether the network fails with what was found, or is slower, by more than chance."""
        return bool(self.failure) or (self.speed_up is not None and self.speed_up.ci95[1] < 1)

    def __str__(self) -> str:
        """One line."""
        if self.failure:
            return f"{self.network.name} stays untuned, it fails with what was found: {self.failure}"
        if self.speed_up is None:
            return f"{self.network.name}: the database changes nothing of it"
        low, high = self.speed_up.ci95
        return (
            f"{self.network.name} as a whole: {self.untuned_ms:.3f} ms untuned, {self.tuned_ms:.3f} tuned "
            f"({self.kind}), {self.speed_up.median:.2f} times as fast ({low:.2f} to {high:.2f})"
            + ("; it stays untuned" if self.stays_untuned else "")
        )


def settle(
    networks: Sequence[Path], database: Path, target: Target, *, gpu: Gpu, precision: Precision, reporter: Reporter
) -> list[Settled]:
    """Compare within each network what a database has for it, and write what was seen into the database.

    Args:
        networks: ONNX files.
        database: of trials on the target's device.
        target: where to run.
        gpu: what is compiled for.
        precision: of the kernels.
        reporter: hears of the rounds.

    Raises:
        UserError: there is no such database, or it has no trials of this device.
        DeviceError: the target went away, or the untuned network fails there; nothing of that network is written.
        CheckError: the untuned network's output is wrong there.
    """
    if not database.is_file():
        raise UserError(f"{database}: there is no such tuning database: make one with `structadmm tune --out`")
    runner = Runner(target)
    settling = _Settling(database, runner, facts_of_target(runner), gpu, precision, reporter)
    try:
        return [settling.settle(network) for network in networks]
    finally:
        runner.discard_bundles()


@dataclass(frozen=True)
class _Settling:
    database: Path
    runner: Runner
    device: DeviceFacts
    gpu: Gpu
    precision: Precision
    reporter: Reporter

    def settle(self, network: Path) -> Settled:
        with (
            open_database(self.database) as (records, writer),
            tempfile.TemporaryDirectory(prefix="structadmm-settle-") as scratch,
        ):
            known = self._trials(records)
            contest = hold_contest(
                network,
                known,
                self._profile,
                source=self.database.name,
                device=self.device,
                gpu=self.gpu,
                precision=self.precision,
                scratch=Path(scratch),
                reporter=self.reporter,
                fatal=_GONE,
            )
            if not contest.records:
                return Settled(network, contest.networks)
            tuned = TunedSchedules([*known, *contest.records], self.database.name, self.gpu, self.precision)
            settled = self._before_and_after(network, tuned, contest.networks, Path(scratch))
            writer.append(*(contest.verdict if settled.stays_untuned else contest.records))
            return settled

    def _trials(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        context = (self.device.key, self.gpu.name, self.precision.name)
        known = [record for record in usable_records(records) if record.identity[:3] == context]
        if not any(record.cost_ms is not None for record in known):
            raise UserError(
                f"{self.database} has no {self.precision.name} trial for {self.gpu.name} that works on "
                f"{self.device.key}: run `structadmm tune` there"
            )
        return known

    def _profile(self, bundle: Path) -> list[float]:
        return [
            launch.median_ms
            for launch in self.runner.profile(bundle, runs=_RUNS, check=True, timeout_s=_PROFILE_S).launches
        ]

    def _before_and_after(self, network: Path, tuned: TunedSchedules, compared: int, scratch: Path) -> Settled:
        bundles = [scratch / "untuned.clbundle", scratch / "tuned.clbundle"]
        for bundle, schedules in zip(bundles, (None, tuned), strict=True):
            compile_onnx(network, bundle, target=self.gpu.name, dtype=self.precision.name, tuned=schedules)
        untuned, found = bundles
        try:
            self.runner.check(found)
        except _GONE:
            raise
        except StructadmmError as error:
            self.runner.check(untuned)  # where that fails, too, the reason is not what was found
            return Settled(network, compared, failure=str(error))
        before, after = self.runner.bench(bundles, runs=_ROUNDS).bundles
        return Settled(
            network,
            compared,
            before.total_ms.median,
            after.total_ms.median,
            paired_speed_up(before.total_samples_ms, after.total_samples_ms),
            self.device.kind,
        )
