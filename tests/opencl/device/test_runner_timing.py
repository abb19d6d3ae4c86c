"""`bench`, `profile` and the binary cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tests.hand_made_bundle import scale_add_files, write_files
from tests.opencl.device.conftest import RunnerProcess

QUICK = ("--runs", 30, "--warmup-runs", 1, "--warmup-ms", 0, "--launch-runs", 5, "--device", "0.0")


def test_statistics_are_those_of_the_raw_samples(runner: RunnerProcess, bundle: Path) -> None:
    times = runner("bench", bundle, *QUICK).one("bench")
    for key, count in (("total", 30), ("launch", 5)):
        samples = np.array(times[f"{key}_samples_ms"])
        assert len(samples) == count
        assert (samples > 0).all()
        expected = {
            "min": samples.min(),
            "median": np.median(samples),
            "mean": samples.mean(),
            **{f"p{p}": np.percentile(samples, p) for p in (10, 90, 99)},
        }
        # Both sides hold twelve significant digits.
        assert times[f"{key}_ms"] == pytest.approx(expected, rel=1e-10)


def test_every_round_times_each_bundle_once_and_rounds_do_not_overlap(runner: RunnerProcess, tmp_path: Path) -> None:
    bundles = [write_files(tmp_path / f"{size}", scale_add_files(size)) for size in (64, 4096, 65536)]
    outcome = runner("bench", *bundles, *QUICK)
    assert outcome.status == 0, outcome
    order = np.array(outcome.one("rounds")["order"])
    assert order.shape == (30, 3)
    assert (np.sort(order, axis=1) == [0, 1, 2]).all()
    # Of 6 orders, 30 fair rounds miss three or more with a chance below 1e-4; the seed is fixed besides.
    assert len({tuple(row) for row in order}) >= 4
    times = [line for line in outcome.events if line["event"] == "bench"]
    assert [line["index"] for line in times] == [0, 1, 2]
    start = np.array([line["start_samples_ms"] for line in times])  # [bundle, round]
    end = start + np.array([line["total_samples_ms"] for line in times])
    # The samples taken one after the other, as the order says, do not overlap: they really were interleaved.
    sequence = [(order[r, i], r) for r in range(30) for i in range(3)]
    begins = np.array([start[bundle, r] for bundle, r in sequence])
    ends = np.array([end[bundle, r] for bundle, r in sequence])
    # 1e-6 ms is the clock's nanosecond, lost in rounding.
    assert (begins[1:] >= ends[:-1] - 1e-6).all()


def test_the_seed_decides_the_order_and_nothing_else_does(runner: RunnerProcess, tmp_path: Path) -> None:
    bundles = [write_files(tmp_path / name, scale_add_files()) for name in ("a", "b")]

    def order(seed: int) -> list[list[int]]:
        found: list[list[int]] = runner("bench", *bundles, *QUICK, "--seed", seed).one("rounds")["order"]
        return found

    five = order(5)
    assert order(5) == five
    assert order(6) != five


def test_rests_lie_between_rounds_and_outside_the_samples(runner: RunnerProcess, bundle: Path) -> None:
    times = runner(
        "bench", bundle, "--runs", 5, "--warmup-runs", 0, "--warmup-ms", 0, "--rest-ms", 20, "--device", "0.0"
    ).one("bench")
    gaps = np.diff(times["start_samples_ms"])
    assert (gaps >= 20).all()
    # An inference of 64 elements takes microseconds; a busy machine does not make most of them last so long.
    assert np.median(times["total_samples_ms"]) < 20


def test_the_warm_up_lasts_as_long_as_asked(runner: RunnerProcess, bundle: Path) -> None:
    import time

    # Twice, so that the cache of the first leaves little besides the warm-up in the second's time.
    cache = bundle.parent / "cache"
    runner("bench", bundle, *QUICK, "--cache", cache)
    start = time.monotonic()
    outcome = runner("bench", bundle, *QUICK, "--warmup-ms", 700, "--cache", cache)
    assert outcome.status == 0
    assert time.monotonic() - start >= 0.7


def test_profile_gives_every_launch_its_layer_its_work_and_its_rates(runner: RunnerProcess, tmp_path: Path) -> None:
    size = 1 << 16
    bundle = write_files(tmp_path / "big", scale_add_files(size))
    outcome = runner("profile", bundle, "--runs", 5, "--device", "0.0")
    assert outcome.status == 0, outcome
    launches = [line for line in outcome.events if line["event"] == "launch"]
    assert [(line["layer"], line["kernel"]) for line in launches] == [("layer/one", "scale_add"), ("layer/two", "relu")]
    assert [line["flops"] for line in launches] == [3 * size, size]
    for line in launches:
        assert 0 < line["min_ms"] <= line["median_ms"] <= line["p90_ms"]
        # FLOPs per ms, in billions per second: 1e6 FLOP/ms is 1 GFLOP/s.
        assert line["gflops_per_s"] == pytest.approx(line["flops"] / line["median_ms"] / 1e6, rel=1e-6)
        assert line["gbytes_per_s"] == pytest.approx(line["bytes"] / line["median_ms"] / 1e6, rel=1e-6)
    assert outcome.one("profile")["launch_sum_ms"]["min"] >= sum(line["min_ms"] for line in launches) * (1 - 1e-9)


def cache_events(runner: RunnerProcess, bundle: Path, cache: Path) -> dict[str, object]:
    outcome = runner("check", bundle, "--cache", cache, "--device", "0.0")
    assert outcome.status == 0, outcome
    found: dict[str, object] = outcome.one("check")["binary_cache"]
    return found


def test_binaries_are_kept_and_used_again(runner: RunnerProcess, bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    nothing = {"used": True, "hits": 0, "misses": 0, "damaged": 0, "refused": 0}
    assert cache_events(runner, bundle, cache) == {**nothing, "misses": 2}
    assert len(list(cache.iterdir())) == 2
    assert cache_events(runner, bundle, cache) == {**nothing, "hits": 2}


def test_a_damaged_binary_is_replaced_from_source(runner: RunnerProcess, bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache_events(runner, bundle, cache)
    first, second = sorted(cache.iterdir())
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:10])
    assert cache_events(runner, bundle, cache)["damaged"] == 2
    assert cache_events(runner, bundle, cache)["hits"] == 2


def test_a_binary_the_driver_refuses_is_replaced_from_source(
    runner: RunnerProcess, bundle: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache_events(runner, bundle, cache)
    payload = b"whole, but no program of this driver" * 8
    for path in cache.iterdir():
        path.write_bytes(b"structadmm-binary 1\n" + hashlib.sha256(payload).digest() + payload)
    assert cache_events(runner, bundle, cache)["refused"] == 2
    assert cache_events(runner, bundle, cache)["hits"] == 2


def test_other_options_are_another_binary(runner: RunnerProcess, tmp_path: Path) -> None:
    files = scale_add_files()
    cache = tmp_path / "cache"
    cache_events(runner, write_files(tmp_path / "a", files), cache)
    files["plan.txt"] = files["plan.txt"].replace(b"-cl-mad-enable", b"-cl-opt-disable")
    counts = cache_events(runner, write_files(tmp_path / "b", files), cache)
    assert (counts["hits"], counts["misses"]) == (1, 1)


def test_a_cache_that_cannot_be_written_is_an_error(runner: RunnerProcess, bundle: Path) -> None:
    outcome = runner("check", bundle, "--cache", bundle / "plan.txt", "--device", "0.0")
    assert outcome.status == 3
    assert "--cache a writable directory" in outcome.stderr
