"""`report.html`: the whole result in one file that needs no other, with plots as inline SVG.

Every number of `result.json` stands in a `<data value="...">` element, in full precision beside its rounded text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from importlib.resources import files
from typing import Any

from results.figures import KIND_LABEL, milliseconds, summary_rows, times, warnings_of
from results.plots import (
    NARROW_IN,
    WIDE_IN,
    plot_history,
    plot_kept,
    plot_latencies,
    plot_layer_times,
    plot_purification,
    plot_residuals,
)
from results.records import Checks, Result
from results.report_data import ReportData

CHECK_MEANING = {
    "masked_vs_shrunk": "masked network against the physically smaller one, PyTorch",
    "shrunk_vs_onnx": "smaller network against its ONNX file, ONNX Runtime",
    "onnx_vs_device": "ONNX file against the compiled bundle, on the device",
}


def report_html(data: ReportData) -> str:
    """The report as a complete HTML page."""
    result = data.result
    sections = [
        _headline(result),
        _section(
            "Side by side",
            "<p class='note'>Baseline is the same network unpruned, compiled with the same settings and timed on the "
            "same device. MACs are those of what is left, without removed filters, channels and columns; what kernels "
            "compute is told under &ldquo;How it was measured&rdquo;.</p>",
            _side_by_side(result),
        ),
        _section(
            "Latency",
            _kind(result),
            "<p class='note'>A dot is one inference; upright bar: the median; level bar: from the 10th to the 90th "
            "percentile.</p>",
            _plot(plot_latencies, data.baseline_ms, data.pruned_ms),
            _latency_table(result),
        ),
    ]
    if data.layer_times:
        sections.append(
            _section(
                "Time per layer",
                _kind(result),
                "<p class='note'>From a profile, with one clock reading per launch: good for comparing layers, "
                "while their sum leaves out what passes between launches.</p>",
                _plot(plot_layer_times, data.layer_times),
            )
        )
    if data.layers:
        sections.append(_section("What was kept", _plot(plot_kept, data.layers)))
    if data.epochs:
        sections.append(_section("Training", _plot(plot_history, data.epochs)))
    if data.residuals:
        sections.append(
            _section(
                "ADMM",
                "<p class='note'>The penalty pulls W towards the nearest pruned tensor Z; a primal residual near zero "
                "means that the hard prune changes little.</p>",
                _plot(plot_residuals, data.residuals),
            )
        )
    if data.purification:
        sections.append(
            _section(
                "Purification",
                "<p class='note'>Channels that were nearly empty were emptied, without retraining. The accuracy in the "
                "table at the top is the exported network's on the test images; this plot's is of the held-out images "
                "that the thresholds were chosen on.</p>",
                _plot(plot_purification, data.purification),
            )
        )
    sections += [
        _section("Checks", "<p class='note'>Largest absolute difference of logits.</p>", _checks_table(result)),
        _section("How it was measured", _kind(result), _definitions(data.method.items())),
        _section("Environment", _definitions(_flattened(result.environment))),
    ]
    style = files("results").joinpath("report.css").read_text(encoding="utf-8")
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(result.name)}: pruned and measured</title>\n<style>\n{style}</style>\n"
        "</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n<footer>Made by structadmm. The same numbers, for programs: <code>result.json</code>.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _headline(result: Result) -> str:
    latency, accuracy = result.latency_ms, result.accuracy
    low, high = latency.speedup.ci95
    points = accuracy.pruned - accuracy.dense
    cards = [
        (
            "speedup",
            _data("latency_ms.speedup.median", latency.speedup.median, times(latency.speedup.median)),
            "speed-up",
            f"95 % interval {_data('latency_ms.speedup.ci95.0', low, f'{low:.2f}')} to "
            f"{_data('latency_ms.speedup.ci95.1', high, f'{high:.2f}')}<br>{_kind_badge(result)}",
        ),
        (
            "conv",
            _data("conv_params.ratio", result.conv_params.ratio, times(result.conv_params.ratio)),
            "fewer CONV parameters",
            f"{result.conv_params.dense:,} to {result.conv_params.pruned:,}",
        ),
        (
            "macs",
            _data("macs.ratio", result.macs.ratio, times(result.macs.ratio)),
            "fewer MACs",
            f"{result.macs.dense:,} to {result.macs.pruned:,}",
        ),
        (
            "accuracy",
            f"{points:+.2f}".replace("-", "−"),
            "points of accuracy",
            f"{accuracy.dense:.2f} % to {accuracy.pruned:.2f} % on "
            f"{_data('accuracy.test_samples', accuracy.test_samples, f'{accuracy.test_samples:,}')} test samples, "
            "last epoch",
        ),
    ]
    body = "".join(
        f"<div class='card' id='card-{name}'><div class='figure'>{figure}</div>"
        f"<div class='label'>{label}</div><div class='detail'>{detail}</div></div>"
        for name, figure, label, detail in cards
    )
    return (
        f"<h1>{escape(result.name)}</h1>\n<p class='lead'>Pruned with ADMM, compiled to OpenCL and timed against its "
        f"unpruned self on {escape(latency.device)}.</p>\n<div class='cards'>{body}</div>"
        + "".join(f"<p class='warning'>{escape(warning)}</p>" for warning in warnings_of(result))
    )


def _side_by_side(result: Result) -> str:
    fields = (
        ("accuracy.dense", "accuracy.pruned", None),
        *((f"{path}.dense", f"{path}.pruned", f"{path}.ratio") for path in ("conv_params", "params", "macs")),
        ("latency_ms.baseline.median", "latency_ms.pruned.median", "latency_ms.speedup.median"),
    )
    rows = []
    for (dense, pruned, change), row in zip(fields, summary_rows(result), strict=True):
        change_text = row.change.text.replace("-", "−")
        rows.append(
            [
                escape(row.label),
                _data(dense, row.dense.value, row.dense.text),
                _data(pruned, row.pruned.value, row.pruned.text),
                _data(change, row.change.value, change_text) if change else escape(change_text),
            ]
        )
    return _table(["", "dense", "pruned", "change"], rows)


def _latency_table(result: Result) -> str:
    networks = (("baseline", result.latency_ms.baseline), ("pruned", result.latency_ms.pruned))
    rows = []
    for field in ("min", "p10", "median", "mean", "p90", "p99"):
        values = [(name, getattr(latency, field)) for name, latency in networks]
        rows.append([field, *(_data(f"latency_ms.{name}.{field}", ms, milliseconds(ms)) for name, ms in values)])
    counts = [
        _data(f"latency_ms.{name}.samples", latency.samples, f"{latency.samples:,}") for name, latency in networks
    ]
    rows.append(["samples", *counts])
    return _table([f"latency ({result.latency_ms.kind})", "baseline", "pruned"], rows)


def _checks_table(result: Result) -> str:
    rows = []
    for name in Checks.model_fields:
        found, allowed = getattr(result.checks, name), getattr(result.tolerances, name)
        rows.append(
            [
                CHECK_MEANING[name],
                _data(f"checks.{name}", found, f"{found:.2e}"),
                _data(f"tolerances.{name}", allowed, f"{allowed:.0e}"),
                "pass" if found <= allowed else "FAIL",
            ]
        )
    return _table(["", "found", "at most", ""], rows).replace("<td>pass", "<td class='pass'>pass")


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def _kind_badge(result: Result) -> str:
    kind = result.latency_ms.kind
    return f"<span class='kind {kind}'>{KIND_LABEL[kind]}</span>"


def _kind(result: Result) -> str:
    return f"<p class='note'>{_kind_badge(result)} {escape(result.latency_ms.device)}</p>"


def _plot(draw: Callable[..., str], *data: Any) -> str:
    """The plot for a wide page and for a phone: scaled down, its letters would be too small to read."""
    return (
        f"<figure class='wide'>{draw(*data, width_in=WIDE_IN)}</figure>"
        f"<figure class='narrow'>{draw(*data, width_in=NARROW_IN)}</figure>"
    )


def _table(headings: list[str], rows: Iterable[list[str]]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<div class='scroll'><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>"


def _definitions(items: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>\n" for label, text in items) + "</dl>"


def _data(path: str, value: float, text: str) -> str:
    """A number of the result: `path` says which, `value` is exact, `text` is for people."""
    return f"<data data-field='{path}' value='{value!r}'>{escape(text)}</data>"


def _flattened(value: Any, place: str = "") -> list[tuple[str, str]]:
    """Nested objects as `outer.inner` and text."""
    if isinstance(value, dict):
        return [
            item for key, inner in value.items() for item in _flattened(inner, f"{place}.{key}" if place else str(key))
        ]
    if isinstance(value, list):
        return [(place, ", ".join(map(str, value)))]
    return [(place, str(value))]
