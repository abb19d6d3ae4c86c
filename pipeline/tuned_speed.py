"""`tuned.json` beside a reference network: it and its dense original timed with schedules searched on this machine.

    python -m pipeline.tuned_speed NAME... [--trials N]

First both networks are tuned, into the database that comes with the project for this device: N trials for each of them,
those that it has already among them, and settled. With 0, the default, each takes what schedules the database has.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from pipeline.progress import console_reporter
from pipeline.reference_networks import Folder, find_network
from results.records import Result, read_result
from structadmm.errors import UserError

TUNED = "tuned.json"
DEVICE, TARGET, DTYPE = "local", "opencl-cpu", "float32"


def read_tuned(folder: Folder) -> Result | None:
    """The measurement beside a network, None where there is none.

    Raises:
        UserError: it is damaged, or of another network.
    """
    path = folder.path / TUNED
    if not path.is_file():
        return None
    found = read_result(path)
    if "tuned" not in found.environment:
        raise UserError(f"{path} does not say what was tuned: run `python -m pipeline.tuned_speed` again")
    if found.environment.get("network", {}).get(folder.onnx.name) != folder.network.onnx_sha256:
        raise UserError(f"{path} is of another network than {folder.onnx}: run `python -m pipeline.tuned_speed`")
    return found


def measure_tuned(folder: Folder, database: Path, trials: int) -> Result:
    """Tune both networks on this machine, time them, and write `tuned.json`.

    Args:
        folder: the network.
        database: where trials are kept.
        trials: of each network, over all sessions; 0 takes what there is.

    Raises:
        UserError: the device is not there, or the database is of another one.
    """
    from device.candidates import LocalMeasurer, Trial
    from device.config import MeasureConfig
    from device.target import open_target
    from pipeline.deploy import Settings, deploy, export_dense
    from pipeline.settle import settle
    from results.records import write_result
    from tvm_build.gpu import gpu_by_name
    from tvm_build.precision import precision_by_name
    from tvm_build.tuning.session import REPEATS, run_session
    from tvm_build.tuning.tasks import extract_tasks, fused_network, weight_bytes

    reporter, gpu, precision, trial = console_reporter(), gpu_by_name(TARGET), precision_by_name(DTYPE), Trial()
    with tempfile.TemporaryDirectory(prefix="structadmm-tuned-") as scratch:
        dense = Path(scratch) / "dense.onnx"
        export_dense(folder, dense)
        for path in (dense, folder.onnx) if trials else ():
            network = fused_network(path, gpu, precision)
            measurer = LocalMeasurer(open_target(DEVICE), trial)
            try:
                run_session(
                    extract_tasks([network], gpu, precision),
                    database,
                    measurer,
                    gpu=gpu,
                    precision=precision,
                    trials=trials,
                    reporter=reporter,
                    seed=0,
                    network_bytes=weight_bytes(network, precision),
                    repeats=REPEATS,
                    runs=trial.runs,
                )
                for settled in settle(
                    [path], database, measurer.target, gpu=gpu, precision=precision, reporter=reporter
                ):
                    reporter.say(str(settled))
            finally:
                measurer.close()
        settings = Settings(DEVICE, TARGET, DTYPE, MeasureConfig(), database)
        result = deploy(folder, settings, Path(scratch) / "out", reporter)
    write_result(folder.path / TUNED, result)
    return result


def main() -> None:
    """Tune and measure."""
    from pipeline.shipped_tuning import shipped_database

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--trials", type=int, default=0)
    options = parser.parse_args()
    database = shipped_database(DEVICE, TARGET, DTYPE)
    if database is None:
        raise SystemExit("no tuning database comes with the project for this device: make one with `structadmm tune`")
    for name in options.names:
        latency = measure_tuned(find_network(name), database, options.trials).latency_ms
        low, high = latency.speedup.ci95
        print(f"{name}: {latency.speedup.median:.2f}x ({low:.2f} to {high:.2f}) with tuned schedules")


if __name__ == "__main__":
    main()
