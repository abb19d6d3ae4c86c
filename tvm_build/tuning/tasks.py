"""The layers of networks as tuning tasks: which ones there are, how often they occur, and which of them matter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tvm_build.cost import predict_us
from tvm_build.gpu import Gpu
from tvm_build.kernels import default_schedule
from tvm_build.network import Network, Node
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator
from tvm_build.precision import Precision
from tvm_build.tuning.forms import form_of
from tvm_build.tuning.task_key import operator_key
from tvm_build.winograd import DIRECT, best_tile, form_name, placed_parts, tiles_to_try

# Layers beyond this share of the predicted time are left as they are: a tenth gained there is two thousandths in all.
COVERED = 0.98


@dataclass(frozen=True)
class Use:
    """One way to compute some layers that a task is a part of.

    Attributes:
        group: of identical layers, for which compilation takes the fastest form.
        form: a reduction over all columns or over the kept ones, or Winograd's with one of its tiles.
        layers: names of the group's layers; each is a launch of the task in an inference.
        untuned: whether a compilation without a database chooses this form.
    """

    group: str
    form: str
    layers: tuple[str, ...]
    untuned: bool = False


@dataclass(frozen=True)
class Task:
    """One distinct launch.

    Attributes:
        op: what to compute; of identical ones the first.
        layers: names of the layers it serves.
        uses: what it is a part of.
        predicted_us: of one launch with the schedule that the cost model chooses.
    """

    op: Operator
    layers: tuple[str, ...]
    uses: tuple[Use, ...]
    predicted_us: float

    @property
    def key(self) -> str:
        """What identifies it in a database, beside the device and the number type."""
        return operator_key(self.op)

    @property
    def count(self) -> int:
        """Launches in an inference, if all of its layers are computed in a form that it is part of."""
        return len(self.layers)

    @property
    def forms(self) -> str:
        """Its forms, in words."""
        return ", ".join(dict.fromkeys(use.form for use in self.uses))


@dataclass
class _Group:
    """Identical layers, and the operators of each of their forms; the first is what is compiled without a database."""

    layers: list[str]
    forms: dict[str, list[Operator]]


def extract_tasks(networks: Iterable[Network], gpu: Gpu, precision: Precision) -> list[Task]:
    """The tasks of fused networks that matter, those of the most expensive layers first.

    Args:
        networks: after `fuse`, `assign_layouts` and `assign_memory`; layers of all of them count.
        gpu: what they are compiled for.
        precision: of their kernels.
    """
    groups: dict[str, _Group] = {}
    for network in networks:
        for node in network.nodes:
            if isinstance(node.op, Conv2d | Dense | GlobalAverage):
                forms = _forms(node, gpu, precision)
                key = "|".join(sorted(operator_key(ops[0]) for ops in forms.values() if len(ops) == 1))
                groups.setdefault(key, _Group([], forms)).layers.append(node.layer)
    predicted: dict[str, float] = {}
    for op in (op for group in groups.values() for ops in group.forms.values() for op in ops):
        if operator_key(op) not in predicted:
            predicted[operator_key(op)] = predict_us(op, default_schedule(op, gpu, precision), gpu, precision)

    def share_us(group: _Group) -> float:
        return sum(predicted[operator_key(op)] for op in next(iter(group.forms.values()))) * len(group.layers)

    whole = sum(map(share_us, groups.values()))
    ops: dict[str, Operator] = {}
    layers: dict[str, list[str]] = {}
    uses: dict[str, list[Use]] = {}
    covered = 0.0
    for name, group in sorted(groups.items(), key=lambda item: share_us(item[1]), reverse=True):
        if covered >= COVERED * whole:
            break
        covered += share_us(group)
        for number, (form, form_ops) in enumerate(group.forms.items()):
            for op in form_ops:
                key = operator_key(op)
                ops.setdefault(key, op)
                known = layers.setdefault(key, [])
                known += [layer for layer in group.layers if layer not in known]
                uses.setdefault(key, []).append(Use(name, form, tuple(group.layers), untuned=number == 0))
    return [Task(op, tuple(layers[key]), tuple(uses[key]), predicted[key]) for key, op in ops.items()]


def _forms(node: Node, gpu: Gpu, precision: Precision) -> dict[str, list[Operator]]:
    """Every form of a layer, the one that is compiled without a database first."""
    from tvm_build.fuse import column_options

    op = node.op
    if not isinstance(op, Conv2d):
        assert isinstance(op, Dense | GlobalAverage)
        return {DIRECT: [op]}
    options = sorted(column_options(node), key=lambda option: option != op)
    forms: dict[str, list[Operator]] = {form_of(option): [option] for option in options}
    for tile in tiles_to_try(op, precision):
        forms[form_name(tile)] = list(placed_parts(op, tile, gpu, precision).launches)
    predicted = best_tile(op, gpu, precision)
    first = None if predicted is None else form_name(predicted)
    return dict(sorted(forms.items(), key=lambda item: item[0] != first))


def weight_bytes(network: Network, precision: Precision) -> int:
    """Bytes of a network's weights, as far as its layers are computed in one launch."""
    return sum(array.size * precision.item_bytes for node in network.nodes for array in node.constants.values())


def fused_network(path: Path, gpu: Gpu, precision: Precision) -> Network:
    """An ONNX file as the network whose nodes become launches.

    Raises:
        UserError: the file is not a network that can be compiled.
    """
    from tvm_build.fuse import fuse
    from tvm_build.import_onnx import import_onnx
    from tvm_build.layout import assign_layouts
    from tvm_build.recognize import recognize
    from tvm_build.storage import assign_memory

    network = assign_layouts(fuse(recognize(import_onnx(path)), gpu, precision), precision)
    return assign_memory(network, gpu, precision)
