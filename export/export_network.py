"""From a network with structured zeros to files that can be deployed, verified on the way."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.config import ExportConfig
from export.fixed_point import shrink_fully
from export.onnx_export import OnnxNetwork, export_onnx
from export.purify_search import PurifySearch, search_purification
from export.shrink import Shrunk, rounded
from export.unused_paths import Removal
from export.verify import Checks, check_samples_apart, random_inputs, verify
from structadmm.errors import UserError
from structadmm.files import write_json
from structadmm.graph.count import Counts, count
from structadmm.graph.ir import Graph
from structadmm.graph.module import GraphModule, flat_outputs
from structadmm.graph.save import save_network
from structadmm.graph.trace import capture
from structadmm.progress import Reporter, SilentReporter

SCHEMA = 1
_IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class Samples:
    """Real inputs to verify on, and their classes if known.

    Attributes:
        inputs: float32 [n, ...], preprocessed.
        labels: int64 [n].
    """

    inputs: Tensor
    labels: Tensor | None = None

    def accuracy(self, outputs: Tensor) -> float | None:
        """Top-1 in percent; None without labels or class scores."""
        if self.labels is None or outputs.ndim != 2 or len(self.labels) == 0:
            return None
        return 100.0 * float((outputs.argmax(dim=1) == self.labels).double().mean())


@dataclass(frozen=True)
class Score:
    """How many of the test images a network classifies rightly."""

    correct: int
    images: int

    @property
    def percent(self) -> float:
        """Top-1."""
        return 100.0 * self.correct / self.images


def export_network(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    out_dir: Path,
    *,
    config: ExportConfig | None = None,
    dense_state: Mapping[str, Tensor] | None = None,
    samples: Samples | None = None,
    held_out: Samples | None = None,
    accuracy: Mapping[str, float] | None = None,
    test: Callable[[GraphModule], Score] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Shrink, export and verify any network whose weights hold structured zeros.

    Writes `pruned.onnx`, `baseline.onnx`, `shrunk.safetensors`, `shrunk.json` and `export.json`.

    Args:
        module: the pruned network, zeros in place.
        example_inputs: one input, or all positional ones; batch first.
        out_dir: where to write; created.
        config: None: the defaults.
        dense_state: weights of the unpruned network for the baseline; None: those of `module`.
        samples: real inputs; the network must then take exactly one input.
        held_out: labelled images that purification is checked on, neither trained on nor tested on; None: `samples`.
        accuracy: `dense` and `pruned` top-1 on the test images, recorded in the files.
        test: scores a network on the test images; called on the shrunk network if purification changed it, and the
            result recorded in place of `accuracy["pruned"]`, which is of the network before it.
        reporter: shows progress.

    Returns:
        What `export.json` holds.

    Raises:
        UserError: the network cannot be traced, shrunk or expressed in ONNX; names the node.
        InvariantError: the exported network is not the given one.
    """
    config, reporter = config or ExportConfig(), reporter or SilentReporter()
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    _check_finite(module.state_dict())
    with reporter.task("export", total=5) as task:
        graph, state = capture(module.float(), tuple(value.float() for value in inputs))
        state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        baseline = _baseline_state(graph, state, dense_state)
        _check_finite(baseline)
        check_samples_apart(GraphModule(graph, state))
        task.advance(note="traced")
        batches = _batches(graph, config, samples)
        purified = _purify(graph, state, config, held_out or samples)
        masked_state = state if purified is None else purified.purified.state
        # In float64, so that folded constants are rounded once, at the end.
        doubles = {n: t.double() if t.is_floating_point() else t for n, t in masked_state.items()}
        removal, exact = shrink_fully(graph, doubles)
        smaller = rounded(exact, torch.float32)
        task.advance(note="shrunk")
        masked = GraphModule(graph, masked_state).eval()
        shrunk = GraphModule(smaller.graph, smaller.state).eval()
        save_network(out_dir / "shrunk", shrunk)
        counts = count(graph), count(smaller.graph, smaller.state)
        changed = purified is not None and bool(purified.purified.emptied)
        score = test(shrunk) if changed and test is not None else None
        accuracy = _accuracy(accuracy or {}, changed=changed, score=score)
        metadata = _metadata(counts, accuracy)
        pruned_onnx = export_onnx(
            smaller.graph, smaller.state, out_dir / "pruned.onnx", batch=config.batch, metadata=metadata
        )
        task.advance(note="pruned.onnx")
        baseline_onnx = export_onnx(
            graph, baseline, out_dir / "baseline.onnx", batch=config.batch, metadata={"structadmm.network": "baseline"}
        )
        task.advance(note="baseline.onnx")
        shrunk_double = GraphModule(exact.graph, exact.state).eval()
        checks = verify(masked, shrunk, pruned_onnx, batches, smaller.keeps, shrunk_double)
        dense = GraphModule(graph, baseline).eval()
        baseline_checks = verify(dense, dense, baseline_onnx, batches)
        task.advance(note="verified")
    record = _record(graph, removal, smaller, counts, checks, baseline_checks)
    record["purified"] = None if purified is None else _purified_record(purified, held_out, samples, score)
    record["accuracy"] = accuracy
    if samples is not None:
        names = (("pruned", pruned_onnx), ("baseline", baseline_onnx))
        record["sample_accuracy"] = {
            "samples": len(samples.inputs),
            **{name: samples.accuracy(OnnxNetwork(model)(samples.inputs)[0]) for name, model in names},
        }
    write_json(out_dir / "export.json", record)
    return record


def _baseline_state(graph: Graph, state: Mapping[str, Tensor], dense: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if dense is None:
        return dict(state)
    found = dict(state)
    for name, entry in graph.state.items():
        if entry.alias_of is None and entry.kind != "constant":
            if name not in dense or tuple(dense[name].shape) != entry.shape:
                raise UserError(
                    f"the dense weights have no {name!r} of shape {list(entry.shape)}: give those of this network"
                )
            found[name] = dense[name].detach().to("cpu", state[name].dtype)
    return found


def _check_finite(state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{name!r} holds values that are not finite: give weights of a network that has not diverged"
            )


def _batches(graph: Graph, config: ExportConfig, samples: Samples | None) -> list[tuple[Tensor, ...]]:
    batches = random_inputs(graph, samples=config.random_samples)
    if samples is not None:
        if len(graph.inputs) != 1:
            raise UserError(f"the samples hold one input, the network takes {len(graph.inputs)}: leave the samples out")
        if tuple(samples.inputs.shape[1:]) != graph.inputs[0].shape[1:]:
            arrived, expected = list(samples.inputs.shape[1:]), list(graph.inputs[0].shape[1:])
            raise UserError(f"the samples have shape {arrived} each, the network takes {expected}")
        batches.append((samples.inputs.float(),))
    return batches


def _purify(
    graph: Graph, state: dict[str, Tensor], config: ExportConfig, held_out: Samples | None
) -> PurifySearch | None:
    if not config.purify.enabled:
        return None
    if held_out is None or held_out.labels is None or not len(held_out.labels):
        raise UserError(
            "purification needs labelled images to check the accuracy on: give them, or disable export.purify"
        )

    def top1(tensors: Mapping[str, Tensor]) -> float:
        module = GraphModule(graph, tensors).eval()
        with torch.no_grad():
            outputs = [flat_outputs(module(part))[0] for part in torch.split(held_out.inputs, _IMAGES_AT_ONCE)]
        found = held_out.accuracy(torch.cat(outputs))
        if found is None:
            raise UserError(
                "purification needs a network that returns class scores [n, classes]: disable export.purify"
            )
        return found

    return search_purification(
        graph,
        state,
        etas=config.purify.eta,
        sigmas=config.purify.sigma,
        accuracy=top1,
        max_accuracy_drop=config.purify.max_accuracy_drop,
    )


def _metadata(counts: tuple[Counts, Counts], accuracy: Mapping[str, float]) -> dict[str, str]:
    dense, pruned = counts
    facts = {
        "structadmm.network": "pruned",
        "structadmm.conv_params": f"{dense.conv_params} -> {pruned.conv_params}",
        "structadmm.params": f"{dense.params} -> {pruned.params}",
        "structadmm.macs": f"{dense.macs} -> {pruned.macs}",
    }
    return facts | {f"structadmm.accuracy.{name}": f"{value:.4g}" for name, value in accuracy.items()}


def _ratio(dense: int, pruned: int) -> dict[str, float]:
    # A network without convolutions has no ratio of them; 1 says that nothing was gained.
    return {"dense": dense, "pruned": pruned, "ratio": dense / pruned if pruned else 1.0}


def _record(
    graph: Graph,
    removal: Removal,
    smaller: Shrunk,
    counts: tuple[Counts, Counts],
    checks: Checks,
    baseline_checks: Checks,
) -> dict[str, Any]:
    dense, pruned = counts
    assert checks.shrunk_vs_onnx is not None  # both were compared with their ONNX files
    assert baseline_checks.shrunk_vs_onnx is not None
    differences = {
        "masked_vs_shrunk": checks.masked_vs_shrunk,
        "masked_vs_shrunk_float64": checks.masked_vs_shrunk_double,
        "shrunk_vs_onnx": checks.shrunk_vs_onnx,
        "baseline_vs_onnx": baseline_checks.shrunk_vs_onnx,
    }
    return {
        "schema": SCHEMA,
        "conv_params": _ratio(dense.conv_params, pruned.conv_params),
        "params": _ratio(dense.params, pruned.params),
        "macs": _ratio(dense.macs, pruned.macs),
        "activations": _ratio(dense.activations, pruned.activations),
        "checks": {name: error.found for name, error in differences.items()},
        "tolerances": {name: error.allowed for name, error in differences.items()},
        "layers": layer_table(dense, pruned, removal),
        "removed": removal.removed,
        "kept": {group: {str(unit): why for unit, why in units.items()} for group, units in removal.kept.items()},
        "frozen": {
            group.name: group.frozen
            for group in removal.coupling.groups
            if group.frozen is not None and group.producers
        },
        "folded": list(removal.folded),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("structadmm", "torch", "onnx", "onnxruntime", "safetensors")
        }
        | {"python": platform.python_version()},
    }


def _accuracy(given: Mapping[str, float], *, changed: bool, score: Score | None) -> dict[str, float]:
    """What is known of the exported networks' accuracy: what was measured before purification is not theirs."""
    known = dict(given)
    if changed and "pruned" in known:
        known["before_purification"] = known.pop("pruned")
    if score is not None:
        known["pruned"] = score.percent
    return known


def _purified_record(
    found: PurifySearch, held_out: Samples | None, samples: Samples | None, score: Score | None
) -> dict[str, Any]:
    images = held_out or samples
    assert images is not None  # the search needed them
    return {
        "checked_on": "samples" if held_out is None else "held-out images",
        "images": len(images.inputs),
        # None: nothing was emptied, or no test images were given.
        "test": None if score is None else {"correct": score.correct, "images": score.images},
        **found.record(),
    }


def layer_table(dense: Counts, pruned: Counts, removal: Removal) -> list[dict[str, Any]]:
    """Per layer: shapes before and after, kept columns, and why dead filters stay."""
    rows = []
    left = {layer.node: layer for layer in pruned.layers}
    for before in dense.layers:
        after = left.get(before.node)
        if after is None:
            continue  # its result reaches no output
        groups = removal.coupling.producer_groups(before.parameter)
        why = sorted({reason for group in groups for reason in removal.kept.get(group.name, {}).values()})
        rows.append(
            {
                "name": before.name,
                "kind": before.kind,
                "dense_shape": list(before.shape),
                "shrunk_shape": list(after.shape),
                "kept_columns": after.kept_columns,
                "columns": after.columns,
                "dead_filters": after.filters - after.kept_filters,
                "dense_params": before.params,
                "params": after.params,
                "dense_macs": before.macs,
                "macs": after.macs,
                "not_removed": why,
            }
        )
    return rows
