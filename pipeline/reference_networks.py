"""Pruned networks that come with the project, in `results/reference/networks/NAME/`, and whatever has that form.

A folder holds `pruned.onnx` and `network.json`, which says what the dense network is and what was achieved; beside them
what the run left for people: configuration, history, result and report. `pipeline.publish` writes one from a run.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from results.records import Accuracy, Checks, Count, Record, Reduction, read_record
from structadmm.errors import UserError
from structadmm.files import sha256_file

SCHEMA = 1
NETWORK = "network.json"
ONNX = "pruned.onnx"
WEIGHTS = "pruned.weights-*.bin"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DenseModel(Record):
    """How the dense network is built; its latency does not depend on its weights, so none are kept."""

    entry: str
    kwargs: dict[str, Any] = Field(default_factory=dict)


class EvaluatedOn(Record):
    """The images that the accuracies are of.

    Attributes:
        name: of the data set, as `--data` takes it.
        images: how many.
        sha256: of pixels and labels (`pipeline.evaluate.data_digest`).
        note: what a reader must know about them; may be empty.
    """

    name: str
    images: Count
    sha256: Sha256
    note: str = ""


class ReferenceNetwork(Record):
    """`network.json`, schema 1.

    Attributes:
        title: one line for people.
        model: the dense network.
        input_shape: of one inference, batch first.
        data: the test images.
        accuracy: percent of them; `pruned` by ONNX Runtime on `pruned.onnx`, `dense` as trained.
        correct: test images that `pruned.onnx` classifies rightly.
        conv_params: before and after.
        params: likewise.
        macs: likewise.
        checks: differences between the forms of the network when it was exported; on a device they are found anew.
        tolerances: of these.
        onnx_sha256: of `pruned.onnx`.
        weights_sha256: of the files beside it that hold weights of a larger network, by name.
        commit: of the project that made it.
    """

    schema_: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    title: str
    model: DenseModel
    input_shape: tuple[Count, ...]
    data: EvaluatedOn
    accuracy: Accuracy
    correct: Count
    conv_params: Reduction
    params: Reduction
    macs: Reduction
    checks: Checks
    tolerances: Checks
    onnx_sha256: Sha256
    weights_sha256: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Sha256] = Field(default_factory=dict)
    commit: str

    model_config = Record.model_config | {"populate_by_name": True}

    @field_validator("input_shape")
    @classmethod
    def _batch_first(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) < 2:
            raise ValueError(f"expected batch, channels and sides, got {list(value)}")
        return value


@dataclass(frozen=True)
class Folder:
    """A reference network and where it lies."""

    path: Path
    network: ReferenceNetwork

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.name

    @property
    def onnx(self) -> Path:
        """The pruned network."""
        return self.path / ONNX


def networks_dir() -> Path:
    """Where the project's own lie, wherever it is installed."""
    return Path(str(files("results"))) / "reference" / "networks"


def list_networks() -> list[Folder]:
    """The project's own, by name."""
    return [open_folder(path.parent) for path in sorted(networks_dir().glob(f"*/{NETWORK}"))]


def find_network(name: str) -> Folder:
    """One of the project's own by its name, or any folder of that form by its path.

    Raises:
        UserError: there is none, or its files are damaged.
    """
    own = {path.parent.name: path.parent for path in networks_dir().glob(f"*/{NETWORK}")}
    if name in own:
        return open_folder(own[name])
    if (Path(name) / NETWORK).is_file():
        return open_folder(Path(name).resolve())
    near = difflib.get_close_matches(name, own, n=3) or sorted(own)
    raise UserError(f"no reference network {name!r}: choose {', '.join(near)}, or a folder with {NETWORK} and {ONNX}")


def open_folder(path: Path) -> Folder:
    """Read and verify a folder.

    Raises:
        UserError: a file is absent, or is not what was published.
    """
    network = read_record(path / NETWORK, ReferenceNetwork, SCHEMA)
    for name, digest in {ONNX: network.onnx_sha256, **network.weights_sha256}.items():
        if not (path / name).is_file():
            raise UserError(f"{path} holds no {name}: restore it")
        if sha256_file(path / name) != digest:
            raise UserError(f"{path / name} is not the file that {NETWORK} describes: restore it")
    return Folder(path, network)
