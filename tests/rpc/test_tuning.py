"""A whole tuning session over the tracker, during which servers die, up to the network that comes out of it."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from device.candidates import Trial
from device.local_target import LocalDevice, LocalTarget
from device.rpc.address import Address
from device.rpc.fleet import query_fleet
from device.rpc.measurer import RpcMeasurer
from device.runner_client import Runner
from structadmm.progress import SilentReporter
from tests.compile.onnx_models import conv, save, weights
from tests.emulated_phone import EmulatedPhone
from tvm_build.compile import compile_onnx
from tvm_build.gpu import gpu_by_name
from tvm_build.precision import FLOAT32
from tvm_build.tuning.database import read_database
from tvm_build.tuning.measurer import CandidateOutcome
from tvm_build.tuning.session import run_session
from tvm_build.tuning.tasks import extract_tasks, fused_network

from .conftest import ServeCommand, wait_for

TRIALS = 64
CPU = gpu_by_name("opencl-cpu")


class Watched(RpcMeasurer):
    """Calls back between outcomes, with how many there have been."""

    def __init__(self, *arguments: Any, between: Callable[[int], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._between = between
        self.statuses: Counter[str] = Counter()

    def measure(self, bundles: Iterable[Path]) -> Iterator[tuple[int, CandidateOutcome]]:
        for index, outcome in super().measure(bundles):
            self.statuses[outcome.status] += 1
            self._between(self.statuses.total())
            yield index, outcome


def three_layers(path: Path) -> Path:
    """Small enough that a candidate is gone before its process is."""
    nodes = [
        conv("a", "x", "y", pads=[1, 1, 1, 1], bias=True),
        conv("b", "y", "z", bias=True),
        conv("c", "z", "out", pads=[1, 1, 1, 1], strides=[2, 2], bias=True),
    ]
    constants = {
        **{"a.weight": weights(16, 8, 3, 3), "a.bias": weights(16)},
        **{"b.weight": weights(8, 16, 1, 1, seed=1), "b.bias": weights(8)},
        **{"c.weight": weights(16, 8, 3, 3, seed=2), "c.bias": weights(16)},
    }
    return save(path, nodes, {"x": [1, 8, 8, 8]}, ["out"], constants)


def test_a_session_of_64_trials_loses_no_record_when_servers_die_and_its_database_compiles_to_a_right_network(
    tracker: Address,
    key: str,
    serve: Callable[..., ServeCommand],
    make_phone: Callable[..., EmulatedPhone],
    gpu: LocalDevice,
    tmp_path: Path,
) -> None:
    here, phone = serve(), serve(f"adb:127.0.0.1:{make_phone().port}")
    assert len(query_fleet(tracker).of_key(key)) == 2

    def between(ended: int) -> None:
        if ended == TRIALS // 4:
            here.bridge().send_signal(signal.SIGKILL)
        elif ended == TRIALS * 3 // 4:
            wait_for(lambda: here.log().count(f"as {key}") == 2, "the killed bridge to be registered again")
            phone.process.send_signal(signal.SIGKILL)  # from now on, the one that came back does all the work

    model, database = three_layers(tmp_path / "model.onnx"), tmp_path / "db.jsonl"
    tasks = extract_tasks([fused_network(model, CPU, FLOAT32)], CPU, FLOAT32)
    assert len({layer for task in tasks for layer in task.layers}) == 3
    with closing(Watched(tracker, key, trial=Trial(runs=2, warmup_runs=1, timeout_s=300), between=between)) as measurer:
        result = run_session(
            tasks, database, measurer, gpu=CPU, precision=FLOAT32, trials=TRIALS, reporter=SilentReporter()
        )
    assert result.new_trials == TRIALS
    records = read_database(database)
    assert len(records) == len({record.identity for record in records}) == TRIALS
    assert {record.status for record in records} == {"ok"} == set(measurer.statuses)
    assert "was killed by signal 9" in here.log()
    wait_for(lambda: not phone.listed(), "the killed server to be forgotten")
    wait_for(lambda: [(server.tried or 0) > 0 for server in here.listed()] == [True], "its count of candidates")

    bundle = tmp_path / "net.clbundle"
    summary = compile_onnx(model, bundle, target="opencl-cpu", tuned=database)
    assert summary.tuned is not None
    # Of a layer in Winograd's form, all launches are.
    assert {layer.partition(":")[0] for layer in summary.tuned.tuned} == {"a", "b", "c"}
    sample = np.random.default_rng(0).standard_normal((1, 8, 8, 8)).astype(np.float32)
    [expected] = onnxruntime.InferenceSession(model).run(None, {"x": sample})
    with closing(LocalTarget(gpu.driver.name)) as target:
        [output] = Runner(target).run(bundle, [sample]).outputs
    # Sums of at most 144 products of numbers near one, in another order.
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
