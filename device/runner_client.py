"""The runner as a Python object: bundles and arrays in, typed results out, on whatever target."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device.errors import CheckError, DeviceError, RunnerError, RunnerStatus, TargetOfflineError
from device.runner_build import build_runner
from device.runner_events import (
    BundleTimes,
    Check,
    DeviceInfo,
    LaunchTime,
    Output,
    ProfileSummary,
    Rounds,
    Run,
    Session,
    Watched,
    read_output,
)
from device.target import StateFile, Target
from structadmm.errors import UserError

Array = NDArray[Any]

_START_TIMEOUT_S = 600.0
"""For loading a bundle and building its programs: phones take minutes for a large network's first build."""


_SAMPLE_TIMEOUT_S = 5.0
"""For each inference of `run`: a large network on a slow phone."""


EXTRAS = ("perf_hint", "priority_hint", "recording")
"""Qualcomm's extensions that the runner uses where a driver has them; each can be switched off."""

_MAX_TENSORS = 64
"""The runner's own limit on inputs and outputs."""


@dataclass(frozen=True)
class RunResult:
    """Outputs of one inference, in the bundle's order."""

    session: Session
    run: Run
    outputs: tuple[Array, ...]


@dataclass(frozen=True)
class HeatLimit:
    """When a measurement rests: while the first watched file shows more than `above`, until it shows `until`."""

    above: float
    until: float
    at_most_ms: int


@dataclass(frozen=True)
class BenchResult:
    """Times of bundles measured against each other.

    Attributes:
        rounds: the order inside each round.
        bundles: in the order they were given; their samples are in round order, so equal positions are pairs.
        watched: what the watched files said between rounds, in their units; None: nothing was watched.
    """

    session: Session
    rounds: Rounds
    bundles: tuple[BundleTimes, ...]
    watched: Watched | None = None


@dataclass(frozen=True)
class ProfileResult:
    """Times of each launch, in launch order."""

    session: Session
    summary: ProfileSummary
    launches: tuple[LaunchTime, ...]


class Runner:
    """The runner on a target. It is built and pushed when it is first needed.

    Args:
        target: where to run; the caller closes it.
        use_program_cache: keep and use the driver's program binaries on the target.
        program_cache: directory on the target for them; None: the target's own, which stays from session to session.
        executable: a runner built beforehand; None builds the target's.
        keep_bundles: leave bundles that were checked or profiled on the target, for the next time.
        without: Qualcomm's extensions not to use where a device has them, of `EXTRAS`.
    """

    def __init__(
        self,
        target: Target,
        *,
        use_program_cache: bool = True,
        program_cache: str | None = None,
        executable: Path | None = None,
        keep_bundles: bool = True,
        without: Sequence[str] = (),
    ) -> None:
        self.target = target
        self._keep_bundles = keep_bundles
        self._program_cache = program_cache
        self._use_program_cache = use_program_cache
        self._executable = executable
        self._without = tuple(without)
        self._pushed: str | None = None
        self._bundles: dict[Path, str] = {}

    def info(self) -> list[DeviceInfo]:
        """The OpenCL devices that the runner sees on the target.

        Raises:
            RunnerError: status NO_OPENCL where there is none.
        """
        return self._call(["info"], _START_TIMEOUT_S, retry=True).all("device", DeviceInfo)

    def check(self, bundle: Path, *, timeout_s: float = _START_TIMEOUT_S) -> Check:
        """Run the bundle's sample twice and compare with what it expects.

        Args:
            bundle: what to check.
            timeout_s: for all of it, the driver's compilation included.

        Raises:
            CheckError: an output differs by more than its tolerance, or is not finite.
            RunnerError: the bundle is damaged or cannot run.
        """
        return self._checked(bundle, ["check"], timeout_s).one("check", Check)

    def run(self, bundle: Path, inputs: Sequence[Array], *, samples: int = 1) -> RunResult:
        """One inference, or many in one process.

        Args:
            bundle: what to run.
            inputs: one array for each input of the bundle, of its dtype and shape; the first axis `samples` times as
                long.
            samples: how many inferences; outputs are stacked along the first axis in the same way.

        Raises:
            UserError: an array is not float32, float16 or int32.
            RunnerError: status INPUT for a wrong shape or dtype, USAGE for a wrong number of arrays.
        """
        path = self._push(bundle)
        workdir = self.target.workdir()
        options = []
        with tempfile.TemporaryDirectory(prefix="structadmm-arrays-") as name_of_scratch:
            scratch = Path(name_of_scratch)
            for k, array in enumerate(inputs):
                options += ["--input", self.target.push(_save(array, k, scratch), f"input_{k}.npy")]
            fetched = [f"{workdir}/output_{k}.npy" for k in range(_count_outputs(bundle))]
            for name in fetched:
                options += ["--output", name]
            options += ["--samples", str(samples)]
            timeout_s = _START_TIMEOUT_S + samples * _SAMPLE_TIMEOUT_S
            output = self._call(["run", path, *options, *self._options()], timeout_s, retry=True)
            arrays = []
            for k, name in enumerate(fetched):
                self.target.pull(name, scratch / f"output_{k}.npy")
                arrays.append(_load(scratch / f"output_{k}.npy"))
        return RunResult(output.one("session", Session), output.one("run", Run), tuple(arrays))

    def bench(
        self,
        bundles: Sequence[Path],
        *,
        runs: int = 200,
        warmup_runs: int = 10,
        warmup_ms: int = 200,
        rest_ms: int = 0,
        launch_runs: int = 20,
        seed: int = 0,
        watch: Sequence[StateFile] = (),
        heat_limit: HeatLimit | None = None,
        timeout_s: float = 3600.0,
    ) -> BenchResult:
        """Time bundles against each other: every round times each once, in an order shuffled anew.

        A broken connection ends it: a measurement that started twice would have warmed the device up twice.

        Args:
            bundles: 1 to 16 of them; the same one may come twice.
            runs: rounds.
            warmup_runs: at least so many runs of each before the first round.
            warmup_ms: and at least so long.
            rest_ms: pause between rounds.
            launch_runs: further rounds that time the launches without transfers.
            seed: of the order.
            watch: files to read between rounds, at most 8.
            heat_limit: in the unit of the first of them.
            timeout_s: for all of it.
        """
        paths = [self._push(bundle) for bundle in bundles]
        output = self._call(
            [
                "bench",
                *paths,
                *_counts(
                    runs=runs,
                    warmup_runs=warmup_runs,
                    warmup_ms=warmup_ms,
                    rest_ms=rest_ms,
                    launch_runs=launch_runs,
                    seed=seed,
                ),
                *_watching(watch, heat_limit),
                *self._options(),
            ],
            timeout_s,
        )
        times = output.all("bench", BundleTimes)
        rounds = output.one("rounds", Rounds)
        _expect_complete(times, rounds, len(bundles), runs)
        watched = _in_units(output.one("watch", Watched), watch) if watch else None
        return BenchResult(output.one("session", Session), rounds, tuple(times), watched)

    def profile(
        self,
        bundle: Path,
        *,
        runs: int = 20,
        warmup_runs: int = 3,
        warmup_ms: int = 0,
        check: bool = False,
        timeout_s: float = 3600.0,
    ) -> ProfileResult:
        """Time each launch by the device's own clock.

        Args:
            bundle: what to profile.
            runs: inferences; medians are over them.
            warmup_runs: at least so many before.
            warmup_ms: and at least so long.
            check: first do what `check` does, in the same process.
            timeout_s: for all of it.

        Raises:
            CheckError: with `check`, an output is wrong; nothing was timed then.
        """
        counts = _counts(runs=runs, warmup_runs=warmup_runs, warmup_ms=warmup_ms)
        words = ["profile", *counts, "--check", "on" if check else "off"]
        output = self._checked(bundle, words, timeout_s)
        launches = tuple(output.all("launch", LaunchTime))
        return ProfileResult(output.one("session", Session), output.one("profile", ProfileSummary), launches)

    def _checked(self, bundle: Path, words: Sequence[str], timeout_s: float) -> Output:
        """Run a command on one bundle whose outputs it may find wrong."""
        path = self._push(bundle)
        reached = True
        try:
            return self._call([words[0], path, *words[1:], *self._options()], timeout_s, retry=True)
        except TargetOfflineError:
            reached = False  # and not waited for a second time
            raise
        except RunnerError as error:
            if error.status is RunnerStatus.CHECK:
                raise CheckError(f"{bundle}: {error}") from None
            raise
        finally:
            if reached and not self._keep_bundles:
                self._discard(path)

    def discard_bundles(self) -> None:
        """Remove the bundles that it has brought to the target: they will not be asked for again."""
        for bundle in list(self._bundles):
            self._discard(self._bundles.pop(bundle))

    def _discard(self, path: str) -> None:
        """Remove a bundle from the target. Where that fails, whatever comes next fails, too, and is what counts."""
        with suppress(DeviceError):
            self.target.discard(path)

    def _push(self, bundle: Path) -> str:
        if not bundle.is_dir():
            raise UserError(f"{bundle} is not a bundle directory: give the path of a .clbundle")
        # Named by content, so that a target can keep it for the next time. What is damaged is the runner's to say.
        sums = bundle / "SHA256SUMS"
        digest = hashlib.sha256(sums.read_bytes() if sums.is_file() else b"").hexdigest()
        self._bundles[bundle] = self.target.push(bundle, f"bundle-{digest[:16]}")
        return self._bundles[bundle]

    def _options(self) -> list[str]:
        cache = ["--cache", self._program_cache or self.target.program_cache] if self._use_program_cache else []
        switches = [word for name in self._without for word in (f"--{name.replace('_', '-')}", "off")]
        return [*self.target.runner_options, *cache, *switches]

    def _call(self, arguments: Sequence[str], timeout_s: float, *, retry: bool = False) -> Output:
        if self._pushed is None:
            executable = self._executable or build_runner(self.target.abi)
            self._pushed = self.target.push(executable, "runner")
        try:
            return read_output(self.target.shell([self._pushed, *arguments], timeout_s=timeout_s, retry=retry))
        except RunnerError as error:
            if error.status is RunnerStatus.NO_OPENCL and self.target.no_opencl_remedy:
                raise RunnerError(f"{error}; {self.target.no_opencl_remedy}", error.status) from None
            raise


def _counts(**counts: int) -> list[str]:
    return [word for name, value in counts.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _watching(watch: Sequence[StateFile], limit: HeatLimit | None) -> list[str]:
    words = [word for file in watch for word in ("--watch", file.path)]
    if watch and limit:
        scale = watch[0].scale
        words += _counts(
            hot_above=round(limit.above * scale), hot_until=round(limit.until * scale), hot_rest_ms=limit.at_most_ms
        )
    return words


def _in_units(watched: Watched, watch: Sequence[StateFile]) -> Watched:
    """The readings divided by their scales; refuses a list that is not one series for each file."""
    if len(watched.values) != len(watch) or any(len(series) != len(watched.at_ms) for series in watched.values):
        raise DeviceError("the runner's 'watch' line does not hold one series for each file: rebuild the runner")
    values = tuple(
        tuple(None if value is None else value / file.scale for value in series)
        for file, series in zip(watch, watched.values, strict=True)
    )
    return watched.model_copy(update={"values": values})


def _count_outputs(bundle: Path) -> int:
    """How many files to ask for. A plan that cannot be read gives 0, and the runner then says what is wrong with it."""
    try:
        lines = (bundle / "plan.txt").read_bytes().split(b"\n")
    except OSError:
        return 0
    return min(sum(line.startswith(b"output ") for line in lines), _MAX_TENSORS)


def _save(array: Array, number: int, scratch: Path) -> Path:
    if array.dtype not in (np.float32, np.float16, np.int32):
        raise UserError(f"input {number} is {array.dtype}, expected float32, float16 or int32: convert it")
    path = scratch / f"input_{number}.npy"
    np.save(path, np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).reshape(array.shape))
    return path


def _load(path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DeviceError(f"the runner's output is not a .npy file ({error}): run it again") from None
    return array


def _expect_complete(times: Sequence[BundleTimes], rounds: Rounds, bundles: int, runs: int) -> None:
    """Pairs are taken by position, so nothing may be missing or out of place."""
    whole = [time.index for time in times] == list(range(bundles)) and len(rounds.order) == runs
    whole = whole and all(sorted(order) == list(range(bundles)) for order in rounds.order)
    whole = whole and all(len(time.total_samples_ms) == len(time.start_samples_ms) == runs for time in times)
    if not whole:
        raise DeviceError(f"the runner printed no whole bench of {bundles} bundles in {runs} rounds: run it again")
