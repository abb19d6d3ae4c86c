"""A graph as a portable ONNX file."""

from __future__ import annotations

import ast
import importlib.metadata
import logging
import operator
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import Message
from torch import Tensor

from export.column_weights import store_columns
from export.inference import fold_for_inference
from export.sparse_weights import LARGEST_ELEMENTS, claimed_elements, store_sparse
from structadmm.errors import UserError
from structadmm.files import write_bytes
from structadmm.graph.atoms import argument_of
from structadmm.graph.ir import Graph
from structadmm.graph.module import GraphModule

OPSET = 20
_ORIGIN = "origin"


def export_onnx(
    graph: Graph,
    state: Mapping[str, Tensor],
    path: Path,
    *,
    batch: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Write a network as ONNX: static batch, normalisation folded, zero columns left out of the file.

    Weights carry their PyTorch names (`layer1.0.conv1.weight`), and a node that owns a weight the name of its layer.
    A weight is stored in the smallest of three forms: as it is, as its columns that are not zero
    (`export.column_weights`), or as a `Constant` with a sparse value (`export.sparse_weights`).

    Args:
        graph: the network.
        state: its tensors, float32.
        path: the file to write, atomically.
        batch: the static batch.
        metadata: what to say about the file in its `metadata_props`.

    Raises:
        UserError: the network runs at another batch only, or holds an operator ONNX export cannot express.
    """
    folded, tensors = fold_for_inference(graph, state)
    if graph.batch is None and any(node.shape[:1] != (batch,) for node in graph.inputs):
        raise UserError(f"this network was traced for a fixed batch, export.batch is {batch}: trace it at that batch")
    for node in folded.nodes:
        if "avg_pool" in node.op and argument_of(node, 6, "divisor_override") is not None and "adaptive" not in node.op:
            raise UserError(
                f"{node.op} at {node.label} has a divisor of its own, which ONNX has not: multiply behind it"
            )
    module = GraphModule(folded, tensors).eval()
    examples = tuple(
        torch.zeros(node.shape if graph.batch is None else (batch, *node.shape[1:])) for node in graph.inputs
    )
    inputs = ["input"] if len(examples) == 1 else [node.name for node in graph.inputs]
    outputs = ["output"] if len(graph.outputs) == 1 else [f"output_{k}" for k in range(len(graph.outputs))]
    with _quiet():
        try:
            program = torch.onnx.export(
                _with_layers(torch.export.export(module, examples), folded),
                dynamo=True,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever its passes raise
            raise UserError(f"torch.onnx cannot express the network{_why(error)}: rewrite that operator") from None
    assert program is not None
    model = program.model_proto
    _name_nodes(model)
    stored = {"column_weights": store_columns(model), "sparse_weights": store_sparse(model)}
    facts = {f"structadmm.{form}": " ".join(names) for form, names in stored.items() if names}
    _describe(model, {**(metadata or {}), **facts})
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString())
    return model


def _why(error: BaseException) -> str:
    """The operator that could not be translated, and the first of the chained errors, which knows why."""
    place = ""
    while error.__cause__ is not None:
        error = error.__cause__
        found = re.search(r"translating node %(\w+) .*?target=torch\.ops\.([\w.]+)\]", str(error))
        place = f" at {found[2]} [{found[1]}]" if found else place
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{place}: {line.strip()[:200]}"


def _with_layers(program: torch.export.ExportedProgram, graph: Graph) -> torch.export.ExportedProgram:
    """Tell each operator of `program`, an export of `graph`, which layer of the original network called it."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    nodes = [node for node in graph.nodes if node.op != "input"]
    if [str(call.target) for call in calls if call.target is not operator.getitem] == [
        node.op for node in nodes if node.op != "getitem"
    ]:  # an operator that does nothing may have been left out; names are no reason to fail
        for call, node in zip(calls, nodes, strict=False):
            call.meta["nn_module_stack"] = {_ORIGIN: (node.layer, torch.nn.Module)}
    return program


def _origin(node: onnx.NodeProto) -> str:
    """The layer that `_with_layers` noted; the exporter hands it on as the first of the node's scopes."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "")
    return str(ast.literal_eval(scopes)[0]) if scopes else ""


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name each node after the layer whose weight it owns, the others after their caller and operator."""
    layers = {item.name: item.name.rpartition(".")[0] for item in model.graph.initializer}
    taken: Counter[str] = Counter()
    for node in model.graph.node:
        owned = [layers[name] for name in node.input if layers.get(name)]
        layer = _origin(node)
        name = owned[0] if owned else f"{layer}/{node.op_type}" if layer else node.op_type
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        # Stack traces of the machine that exported say nothing about the network.
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]


def _describe(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    model.producer_name = "structadmm"
    model.producer_version = importlib.metadata.version("structadmm")
    model.graph.name = "network"
    del model.metadata_props[:]
    versions = {f"version.{name}": importlib.metadata.version(name) for name in ("structadmm", "torch", "onnx")}
    onnx.helper.set_model_props(model, {**metadata, **versions})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself, and nothing else."""

    def about_torchvision(record: logging.LogRecord) -> bool:
        return "torchvision is not installed" not in record.getMessage()

    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    registration.addFilter(about_torchvision)
    try:
        with warnings.catch_warnings():
            # torch's exporter still uses names that torch's pytree has deprecated (2.13).
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="onnxscript.*|onnx_ir.*|torch.*")
            yield
    finally:
        registration.removeFilter(about_torchvision)


class OnnxNetwork:
    """Runs an ONNX file on ONNX Runtime's CPU kernels, one thread.

    Args:
        model: the file, or the model.
        every_node: make every intermediate value an output.

    Raises:
        UserError: it is not a valid ONNX network.
    """

    def __init__(self, model: Path | onnx.ModelProto, *, every_node: bool = False) -> None:
        import onnxruntime

        proto = read_onnx(model) if isinstance(model, Path) else model
        if every_node:
            proto = onnx.shape_inference.infer_shapes(proto)
            present = {value.name for value in proto.graph.output}
            proto.graph.output.extend(value for value in proto.graph.value_info if value.name not in present)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        if every_node:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session: Any = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has a class per status code, and protobuf its own
            line = " ".join(str(error).split())[:200]
            raise UserError(f"ONNX Runtime cannot run the network ({line}): export it again") from None
        shapes = [value.shape for value in self.session.get_inputs()]
        if not shapes or any(not shape or not isinstance(shape[0], int) for shape in shapes):
            raise UserError("the ONNX network has no input with a fixed batch: export it with static shapes")
        self.batch = shapes[0][0]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs for inputs of any number of samples; the last batch is filled up with its first sample.

        Raises:
            UserError: ONNX Runtime fails.
        """
        total, parts = inputs[0].shape[0], []
        names = [value.name for value in self.session.get_inputs()]
        for start in range(0, total, self.batch):
            chunk = [value[start : start + self.batch] for value in inputs]
            missing = self.batch - chunk[0].shape[0]
            filled = [torch.cat([value, value[:1].expand(missing, *value.shape[1:])]) for value in chunk]
            fed = {name: value.contiguous().numpy() for name, value in zip(names, filled, strict=True)}
            try:
                results = self.session.run(None, fed)
            except Exception as error:  # ONNX Runtime has a class per status code
                line = " ".join(str(error).split())[:200]
                raise UserError(f"ONNX Runtime cannot run the network ({line}): export it again") from None
            parts.append([value[: self.batch - missing] for value in results])
        return tuple(torch.cat([torch.as_tensor(part[k]) for part in parts]) for k in range(len(self.outputs)))


def tensors_of(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, wherever it hides: initializers, attributes, subgraphs, functions."""
    return (item for item in _messages(message) if isinstance(item, onnx.TensorProto))


def _messages(message: Message) -> Iterator[Message]:
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for item in value if isinstance(value, Sequence) else (value,):
            if isinstance(item, Message):
                yield item
                if not isinstance(item, onnx.TensorProto):
                    yield from _messages(item)


def _read_beside(tensor: onnx.TensorProto, path: Path) -> None:
    """Load data that lies in a file of the folder of `path`; nothing else is opened."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    if location != Path(location).name or location in ("", ".", ".."):
        raise UserError(f"{path} keeps {tensor.name!r} in another folder: save all data inside or beside it")
    try:
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    except Exception as error:  # the checker's, the file's and plain ones
        reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
        raise UserError(f"{path}: {location} beside it cannot be read ({reason}): restore it") from None
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file, with data that it keeps in files beside it.

    Raises:
        UserError: absent, damaged, invalid, or with data in another folder.
    """
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except Exception as error:  # protobuf's errors have no common public base
        raise UserError(f"{path} is not an ONNX file ({str(error)[:100]}): export it again") from None
    for tensor in tensors_of(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _read_beside(tensor, path)
    for item in _messages(model):
        if isinstance(item, onnx.SparseTensorProto) and claimed_elements(item) > LARGEST_ELEMENTS:
            raise UserError(
                f"{path} claims a sparse tensor of {claimed_elements(item):.1e} elements, at most "
                f"{LARGEST_ELEMENTS:.1e} are read: export it again"
            )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference have a class each
        raise UserError(
            f"{path} is not a valid ONNX network ({str(error).splitlines()[0][:150]}): export it again"
        ) from None
    return model
