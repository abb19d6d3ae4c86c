r"""Dense networks that pruned ones are held against: trained on the same images by the same code, for as many epochs.

    python -m pipeline.dense_baselines RUN results/reference/baselines/NAME --title "ResNet-18 on CIFAR-10" \
        [--after NAME] [--note TEXT] [--data-root DIR]

makes a record of a run that removes nothing. The weights are too large to keep; recipe and history are.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.evaluate import data_digest, evaluate_onnx
from pipeline.progress import console_reporter
from pipeline.publish import publication
from pipeline.reference_networks import DenseModel, EvaluatedOn, ReferenceNetwork
from results.records import Count, Record, read_record
from structadmm.errors import InvariantError, UserError
from structadmm.files import atomic_path, read_json, write_json
from structadmm.progress import Reporter

SCHEMA = 1
BASELINE = "baseline.json"
FILES = {"config.toml": "config.toml", "train/history.jsonl": "history.jsonl"}
MAX_POINTS_APART = 0.1
"""A run in bf16 counts in bf16: of ten thousand images six fell otherwise in float32."""


class DenseBaseline(Record):
    """`baseline.json`, schema 1.

    Attributes:
        title: one line for people.
        model: the network.
        data: the test images.
        epochs: that it was trained for, those of the network that it started from among them.
        after: the baseline that it started from, by the name of its folder; empty if from the start.
        correct: test images that it classifies rightly after the last epoch, by ONNX Runtime.
    """

    schema_: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    title: str
    model: DenseModel
    data: EvaluatedOn
    epochs: Count
    after: str = ""
    correct: Count

    model_config = Record.model_config | {"populate_by_name": True}

    @property
    def percent(self) -> float:
        """Top-1 accuracy."""
        return 100.0 * self.correct / self.data.images

    def serves(self, network: ReferenceNetwork) -> bool:
        """Whether `network` is what pruning left of this model, tested on the same images."""
        return (self.model, self.data.sha256) == (network.model, network.data.sha256)


@dataclass(frozen=True)
class BaselineFolder:
    """A baseline and where its record lies."""

    path: Path
    baseline: DenseBaseline


def list_baselines() -> list[BaselineFolder]:
    """The project's own, by name.

    Raises:
        UserError: a record is damaged.
    """
    root = Path(str(files("results"))) / "reference" / "baselines"
    return [
        BaselineFolder(path.parent, read_record(path, DenseBaseline, SCHEMA))
        for path in sorted(root.glob(f"*/{BASELINE}"))
    ]


def best_dense_percent(network: ReferenceNetwork, baselines: Iterable[DenseBaseline]) -> float:
    """Top-1 accuracy that `network` is held against: of the best of `baselines`, or else of the one that was pruned."""
    return max((found.percent for found in baselines if found.serves(network)), default=network.accuracy.dense)


def publish_baseline(
    run: Path, out: Path, *, title: str, note: str, reporter: Reporter, data_root: Path | None = None, after: str = ""
) -> DenseBaseline:
    """Write the folder `out` from the train stage of a run, which is all that such a run needs.

    Raises:
        UserError: the run is not trained, or prunes something, or its data set or what it started from is not there.
        InvariantError: the network does not reach the accuracy of the run.
    """
    from export.onnx_export import export_onnx
    from structadmm.graph import capture
    from structadmm.graph.save import read_tensors
    from train.config import DataConfig
    from train.data import load_dataset
    from train.models import build_model

    pruning = read_json(run / "train" / "pruning.json", schema=1)
    if pruning["conv_params"]["ratio"] != 1.0:
        raise UserError(
            f"{run} prunes, expected a run that removes nothing: publish it with `python -m pipeline.publish`"
        )
    known = {folder.path.name: folder.baseline.epochs for folder in list_baselines()} | {"": 0}
    if after not in known:
        raise UserError(f"no baseline {after!r} to have started from: choose {', '.join(filter(None, known))}")
    where = {} if data_root is None else {"root": data_root}
    data = load_dataset(DataConfig(**{**pruning["data"]["config"], **where}))
    model = build_model(pruning["model"]["entry"], pruning["model"]["kwargs"]).eval()
    model.load_state_dict(read_tensors(run / "train" / "dense.safetensors"))
    graph, state = capture(model, (data.normalised(data.test_images[:2]),))
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "dense.onnx"
        export_onnx(graph, state, onnx, batch=1)
        answers = evaluate_onnx(onnx, data, reporter)
    claimed = pruning["accuracy"]["dense"]
    if abs(answers.percent - claimed) > MAX_POINTS_APART:
        raise InvariantError(f"the network of {run} reaches {answers.percent:.2f} %, the run says {claimed:.2f} %")
    history = (run / "train" / "history.jsonl").read_text(encoding="utf-8")
    baseline = DenseBaseline(
        title=title,
        model=DenseModel(entry=pruning["model"]["entry"], kwargs=pruning["model"]["kwargs"]),
        data=EvaluatedOn(name=data.name, images=len(data.test_labels), sha256=data_digest(data), note=note),
        epochs=known[after] + history.count('"type": "epoch"'),
        after=after,
        correct=answers.correct,
    )
    for source, name in FILES.items():
        with atomic_path(out / name) as temporary:
            shutil.copyfile(run / source, temporary)
    write_json(out / BASELINE, baseline.model_dump(mode="json", by_alias=True))
    return baseline


def main() -> None:
    """Publish and say what."""
    parser = publication(__doc__)
    parser.add_argument("--after", default="", metavar="NAME", help="the baseline whose weights it started from")
    arguments = parser.parse_args()
    found = publish_baseline(**vars(arguments), reporter=console_reporter())
    print(f"{arguments.out}: {found.correct} of {found.data.images} images right after {found.epochs} epochs")


if __name__ == "__main__":
    main()
