r"""Make a reference network of a finished run.

    python -m pipeline.publish RUN results/reference/networks/NAME --title "ResNet-18 on CIFAR-10, 54x" \
        [--note TEXT] [--data-root DIR]

The pruned ONNX file is evaluated once more, and what it classifies rightly is what its description says.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from pipeline.evaluate import MAX_POINTS_APART, data_digest, evaluate_onnx
from pipeline.progress import console_reporter
from pipeline.reference_networks import NETWORK, ONNX, WEIGHTS, DenseModel, EvaluatedOn, ReferenceNetwork, open_folder
from results.records import Accuracy, read_result
from structadmm.errors import InvariantError
from structadmm.files import atomic_path, read_json, sha256_file, write_json
from structadmm.progress import Reporter

FILES = {
    "config.toml": "config.toml",
    "train/history.jsonl": "history.jsonl",
    "report/result.json": "result.json",
    "report/report.html": "report.html",
}
TO_TRAIN_ON = {"export/shrunk.safetensors": "shrunk.safetensors", "export/shrunk.json": "shrunk.json"}
MAX_BYTES = 2_000_000
"""What a repository takes of one file; weights of a larger network lie in several. Dense weights to train on may be
larger still, and are left out then: columns that are gone are zeros there, and nothing in the ONNX file."""


def publish(
    run: Path, out: Path, *, title: str, note: str, reporter: Reporter, data_root: Path | None = None
) -> ReferenceNetwork:
    """Write the folder `out` from a run directory; a folder that is there is replaced file by file.

    Args:
        run: of which all stages are done.
        out: the folder.
        title: one line for people.
        note: what a reader must know about the test images.
        reporter: shows progress.
        data_root: where the data set lies on this machine, if it is not where the run had it.

    Raises:
        UserError: the run is not finished, or its data set is not there.
        InvariantError: the ONNX file does not reach the accuracy of the run.
    """
    from export.onnx_export import read_onnx
    from export.onnx_parts import write_in_parts
    from train.config import DataConfig
    from train.data import load_dataset

    result = read_result(run / "report" / "result.json")
    pruning = read_json(run / "train" / "pruning.json", schema=1)
    where = {} if data_root is None else {"root": data_root}
    data = load_dataset(DataConfig(**{**pruning["data"]["config"], **where}))
    answers = evaluate_onnx(run / "export" / ONNX, data, reporter)
    if abs(answers.percent - result.accuracy.pruned) > MAX_POINTS_APART:
        raise InvariantError(
            f"{run / 'export' / ONNX} reaches {answers.percent:.2f} %, the run says {result.accuracy.pruned:.2f} %"
        )
    network_file = read_onnx(run / "export" / ONNX)
    for stale in out.glob(WEIGHTS):
        stale.unlink()
    beside = write_in_parts(network_file, out / ONNX, MAX_BYTES)
    if read_onnx(out / ONNX) != read_onnx(run / "export" / ONNX):
        raise InvariantError(f"{out / ONNX} and the files beside it are not the network of {run}")
    network = ReferenceNetwork(
        title=title,
        model=DenseModel(entry=pruning["model"]["entry"], kwargs=pruning["model"]["kwargs"]),
        input_shape=tuple(pruning["input_shape"]),
        data=EvaluatedOn(name=data.name, images=len(data.test_labels), sha256=data_digest(data), note=note),
        accuracy=Accuracy(
            dense=result.accuracy.dense, pruned=answers.percent, test_samples=result.accuracy.test_samples
        ),
        correct=answers.correct,
        conv_params=result.conv_params,
        params=result.params,
        macs=result.macs,
        checks=result.checks,
        tolerances=result.tolerances,
        onnx_sha256=sha256_file(out / ONNX),
        weights_sha256={path.name: sha256_file(path) for path in beside},
        commit=str(result.environment.get("training", {}).get("commit", result.environment["commit"])),
    )
    small = (run / "export" / "shrunk.safetensors").stat().st_size < MAX_BYTES
    if not small:  # those of an earlier network would train another one
        for name in TO_TRAIN_ON.values():
            (out / name).unlink(missing_ok=True)
    for source, name in (FILES | TO_TRAIN_ON if small else FILES).items():
        with atomic_path(out / name) as temporary:
            shutil.copyfile(run / source, temporary)
    write_json(out / NETWORK, network.model_dump(mode="json", by_alias=True))
    return open_folder(out).network


def publication(description: str | None) -> argparse.ArgumentParser:
    """Of a command line that says what to publish: `run`, `out`, `title`, `note` and `data_root`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--title", required=True)
    parser.add_argument("--note", default="", help="about the test images")
    parser.add_argument("--data-root", type=Path, help="where the data set lies, if not where the run had it")
    return parser


def main() -> None:
    """Publish and say what."""
    arguments = publication(__doc__).parse_args()
    network = publish(**vars(arguments), reporter=console_reporter())
    print(
        f"{arguments.out}: {network.correct} of {network.data.images} images right, "
        f"{network.conv_params.ratio:.2f}x fewer CONV parameters"
    )


if __name__ == "__main__":
    main()
