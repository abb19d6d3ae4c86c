"""`predicted.json` beside a reference network: the cost model's times for it and its dense original on an Adreno."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.deploy import export_dense
from pipeline.reference_networks import Folder, Sha256
from results.records import Positive, Record, read_record
from structadmm.errors import UserError
from structadmm.files import write_json
from structadmm.progress import Reporter

SCHEMA = 1
PREDICTED = "predicted.json"
TARGET = "adreno-640"
DTYPE = "float16"


class Prediction(Record):
    """Milliseconds of one inference by the cost model; nothing was measured.

    Attributes:
        target: the GPU.
        dtype: of the kernels.
        dense_ms: of the dense network.
        pruned_ms: of `pruned.onnx`.
        dense_launch_ms: of `dense_ms`, what launching its kernels takes.
        pruned_launch_ms: likewise.
        uncertainty: factor within which each time is believed; their ratio is surer, since they share errors.
        onnx_sha256: of the file that it is of.
        commit: of the cost model.
    """

    schema_: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    target: str
    dtype: str
    dense_ms: Positive
    pruned_ms: Positive
    dense_launch_ms: Positive
    pruned_launch_ms: Positive
    uncertainty: Positive
    onnx_sha256: Sha256
    commit: str

    model_config = Record.model_config | {"populate_by_name": True}

    @property
    def speed_up(self) -> float:
        """Times faster."""
        return self.dense_ms / self.pruned_ms


def predict(folder: Folder, reporter: Reporter) -> Prediction:
    """Compile both networks for `TARGET` and write what the cost model says.

    Raises:
        UserError: the dense network cannot be built.
    """
    from structadmm.source import source_commit
    from tvm_build.compile import compile_onnx
    from tvm_build.gpu import gpu_by_name

    gpu = gpu_by_name(TARGET)
    found = {}
    with tempfile.TemporaryDirectory(prefix="structadmm-predict-") as scratch:
        dense = Path(scratch) / "dense.onnx"
        export_dense(folder, dense)
        for name, path in (("dense", dense), ("pruned", folder.onnx)):
            with reporter.task(f"{folder.name}: compiling {name} for {TARGET}"):
                found[name] = compile_onnx(path, Path(scratch) / f"{name}.clbundle", target=TARGET, dtype=DTYPE)
    prediction = Prediction(
        target=TARGET,
        dtype=DTYPE,
        dense_ms=found["dense"].predicted_ms,
        pruned_ms=found["pruned"].predicted_ms,
        dense_launch_ms=round(found["dense"].launches * gpu.launch_us / 1e3, 6),
        pruned_launch_ms=round(found["pruned"].launches * gpu.launch_us / 1e3, 6),
        uncertainty=gpu.uncertainty,
        onnx_sha256=folder.network.onnx_sha256,
        commit=source_commit(),
    )
    write_json(folder.path / PREDICTED, prediction.model_dump(mode="json", by_alias=True))
    return prediction


def read_prediction(folder: Folder) -> Prediction:
    """The prediction beside a network.

    Raises:
        UserError: there is none, or it is of another network.
    """
    path = folder.path / PREDICTED
    again = "run `python -m pipeline.results_page --predict`"
    if not path.is_file():
        raise UserError(f"{path} is not there: {again}")
    found = read_record(path, Prediction, SCHEMA, again)
    if found.onnx_sha256 != folder.network.onnx_sha256:
        raise UserError(f"{path} is of another network than {folder.onnx}: {again}")
    return found
