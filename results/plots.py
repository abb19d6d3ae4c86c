"""The report's plots, as SVG text to put into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from results.report_data import Epoch, LayerTime, PrunedLayer, PurifyTrial, Residual

BASELINE = "#8a94a0"
PRUNED = "#0f766e"
ACCENT = "#b45309"
INK = "#1f2933"
GRID = "#e3e7eb"
WIDE_IN = 8.6  # 860 CSS pixels at the report's widest column
NARROW_IN = 3.58  # a phone's 390 CSS pixels without the page's margins
BAR_IN = 0.25  # height of one layer's row of bars

_STYLE: Any = {  # matplotlib types the keys as one literal of them all
    "svg.fonttype": "none",  # text stays text: sharp, searchable, in the page's own font
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def plot_latencies(baseline_ms: Sequence[float], pruned_ms: Sequence[float], width_in: float = WIDE_IN) -> str:
    """Every sample of both networks as a dot, with the median and the p10 to p90 range.

    A rare sample that is many times slower (a time slice of the scheduler) would press all others into a line at
    the left edge: the axis ends a little after the slower network's 95th percentile, and what lies beyond is told.
    """
    with plot_style():
        figure, axes = new_figure(2.3, width_in)
        jitter = np.random.default_rng(0)  # dots are spread over the height of their row, only to be told apart
        for row, (samples, colour) in enumerate(((pruned_ms, PRUNED), (baseline_ms, BASELINE))):
            heights = row + jitter.uniform(-0.28, 0.28, len(samples))
            axes.plot(samples, heights, ".", color=colour, alpha=0.55, markersize=5, markeredgewidth=0)
            p10, median, p90 = np.percentile(samples, [10, 50, 90])
            axes.plot([p10, p90], [row, row], color=INK, linewidth=1.2, solid_capstyle="butt")
            axes.plot([median, median], [row - 0.34, row + 0.34], color=INK, linewidth=2)
        axes.set_yticks([0, 1], ["pruned", "baseline"])
        axes.set_ylim(-0.6, 1.6)
        end_ms = 1.35 * max(np.percentile(samples, 95) for samples in (baseline_ms, pruned_ms))
        axes.set_xlim(0, end_ms)
        for row, samples in enumerate((pruned_ms, baseline_ms)):
            beyond = [sample for sample in samples if sample > end_ms]
            if beyond:
                note = f"{len(beyond)} slower, up to {max(beyond):.3g} ms →"
                axes.text(end_ms, row + 0.36, note, ha="right", va="bottom", fontsize=8.5, color="#616e7c")
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("latency of one inference, ms")
        return svg_element(figure, "Latency samples of the baseline and the pruned network", "latency", width_in)


def plot_layer_times(times: Sequence[LayerTime], width_in: float = WIDE_IN) -> str:
    """Time of each layer before and after pruning, side by side."""
    with plot_style():
        figure, axes = new_figure(1.1 + BAR_IN * 1.5 * len(times), width_in)
        rows = np.arange(len(times))
        longest_ms = max(max(time.baseline_ms or 0.0, time.pruned_ms or 0.0) for time in times)
        scale, unit = (1000.0, "µs") if longest_ms < 0.1 else (1.0, "ms")
        for offset, colour, label, network_ms in (
            (-0.2, BASELINE, "baseline", [time.baseline_ms for time in times]),
            (0.2, PRUNED, "pruned", [time.pruned_ms for time in times]),
        ):
            axes.barh(
                rows + offset, [scale * (time_ms or 0.0) for time_ms in network_ms], 0.38, color=colour, label=label
            )
        _name_rows(axes, [time.layer for time in times], width_in)
        axes.set_xlabel(f"time in one inference, {unit}")
        legend_above(axes, 2)
        return svg_element(figure, "Time of each layer before and after pruning", "layers", width_in)


def plot_history(epochs: Sequence[Epoch], width_in: float = WIDE_IN) -> str:
    """Training loss and test accuracy over all epochs; each phase is a band with its name."""
    with plot_style():
        figure = Figure(figsize=(width_in, 3.9), layout="constrained")
        loss_axes, accuracy_axes = figure.subplots(2, 1, sharex=True)
        numbers = np.arange(1, len(epochs) + 1)
        loss_axes.plot(numbers, [epoch.loss for epoch in epochs], color=ACCENT, linewidth=1.6)
        loss_axes.set_ylabel("training loss")
        loss_axes.set_yscale("log")
        accuracy_axes.plot(numbers, [epoch.accuracy for epoch in epochs], color=PRUNED, linewidth=1.6)
        accuracy_axes.set_ylabel("test accuracy, %")
        accuracy_axes.set_xlabel("epoch")
        accuracy_axes.set_xlim(0.5, len(epochs) + 0.5)
        start = 0.5
        shortest = min(len(list(group)) for _, group in groupby(epochs, key=lambda epoch: epoch.phase))
        upright = shortest / len(epochs) * (width_in - 0.7) < 0.5  # inches that a label needs; the axis takes 0.7
        for index, (phase, group) in enumerate(groupby(epochs, key=lambda epoch: epoch.phase)):
            end = start + len(list(group))
            for axes in (loss_axes, accuracy_axes):
                if index % 2:
                    axes.axvspan(start, end, color="#f1f4f6", zorder=0, linewidth=0)
            loss_axes.text(
                (start + end) / 2,
                1.04,
                phase if upright else "\n".join(phase.rsplit(" ", 1)),
                transform=loss_axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8,
                linespacing=1.3,
                rotation=90 if upright else 0,
            )
            start = end
        return svg_element(figure, "Training loss and test accuracy over the epochs", "history", width_in)


def plot_residuals(residuals: Sequence[Residual], width_in: float = WIDE_IN) -> str:
    """Primal and dual residual of ADMM at each update, on a logarithmic scale."""
    with plot_style():
        figure, axes = new_figure(2.7 if width_in > NARROW_IN else 3.6, width_in)
        numbers = np.arange(1, len(residuals) + 1)
        start = 0
        for index, (number, group) in enumerate(groupby(residuals, key=lambda residual: residual.round)):
            count = len(list(group))
            part, at = residuals[start : start + count], numbers[start : start + count]
            for values, mark, colour, label in (
                ([r.primal_worst for r in part], "^:", PRUNED, "primal ‖W − Z‖ / ‖W‖,\nworst layer"),
                ([r.primal_median for r in part], "o-", PRUNED, "the same,\nmedian layer"),
                ([r.dual for r in part], "s--", ACCENT, "dual ρ ‖Z − Z previous‖,\nall layers"),
            ):
                legend = label if index == 0 else None
                axes.plot(at, values, mark, color=colour, markersize=3.5, linewidth=1.4, label=legend)
            if index % 2:
                axes.axvspan(start + 0.5, start + count + 0.5, color="#f1f4f6", zorder=0, linewidth=0)
            axes.text(
                start + (count + 1) / 2,
                1.01,
                f"round {number}",
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8,
            )
            start += count
        axes.set_yscale("log")
        axes.set_xlim(0.5, len(residuals) + 0.5)
        axes.set_xlabel("update of Z and U")
        axes.set_ylabel("residual")
        if width_in > NARROW_IN:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), labelspacing=1.0)
        else:
            figure.legend(loc="outside upper left")
        return svg_element(figure, "ADMM residuals at each update", "residuals", width_in)


def plot_kept(layers: Sequence[PrunedLayer], width_in: float = WIDE_IN) -> str:
    """Share of each layer's filters, columns and weights that pruning kept."""
    with plot_style():
        figure, axes = new_figure(1.1 + BAR_IN * 1.5 * len(layers), width_in)
        rows = np.arange(len(layers))
        for offset, colour, label, shares in (
            (-0.27, BASELINE, "filters", [layer.filters_kept / layer.filters for layer in layers]),
            (0.0, ACCENT, "columns", [layer.columns_kept / layer.columns for layer in layers]),
            (
                0.27,
                PRUNED,
                "weights (filters × columns)",
                [layer.filters_kept / layer.filters * layer.columns_kept / layer.columns for layer in layers],
            ),
        ):
            axes.barh(rows + offset, [100 * share for share in shares], 0.25, color=colour, label=label)
        for row, layer in zip(rows, layers, strict=True):
            if width_in > NARROW_IN:
                shape = "×".join(map(str, layer.shape))
                axes.text(102, float(row), f"[{shape}]", va="center", fontsize=8, color="#616e7c")
        _name_rows(axes, [layer.name for layer in layers], width_in)
        axes.set_xlim(0, 100)
        axes.set_xlabel("kept, % of the dense layer")
        legend_above(axes, 3 if width_in > NARROW_IN else 1)
        return svg_element(figure, "Share of each layer that pruning kept", "kept", width_in)


def plot_purification(trials: Sequence[PurifyTrial], width_in: float = WIDE_IN) -> str:
    """Accuracy against further compression for every pair of thresholds tried; the first trial is no purification."""
    with plot_style():
        wide = width_in > NARROW_IN
        figure, axes = new_figure(2.9 if wide else 3.4, width_in)
        dense = trials[0].conv_params
        for colour, label, within in ((PRUNED, "within the budget", True), (BASELINE, "beyond it", False)):
            part = sorted((dense / t.conv_params, t.accuracy) for t in trials if t.within_budget == within)
            if part:
                axes.plot(*zip(*part, strict=True), "o", color=colour, markersize=5, label=label)
        chosen = next(t for t in trials if t.chosen)
        axes.plot(
            [dense / chosen.conv_params], [chosen.accuracy], "o", markersize=11, fillstyle="none", color=ACCENT,
            markeredgewidth=1.8, label="exported",
        )  # fmt: skip
        axes.set_xlabel("CONV parameters before purification / after" if wide else "CONV parameters, before / after")
        axes.set_ylabel("accuracy, %")
        if not wide:
            axes.xaxis.set_major_locator(MaxNLocator(3))
        legend_above(axes, 3 if wide else 1)
        return svg_element(figure, "Accuracy against the extra compression of purification", "purification", width_in)


def plot_style() -> AbstractContextManager[None]:
    """While open, figures look like ours."""
    style: AbstractContextManager[None] = mpl.rc_context(_STYLE)
    return style


def new_figure(height_in: float, width_in: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, inches."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.subplots()


def _name_rows(axes: Axes, names: Sequence[str], width_in: float) -> None:
    limit = 34 if width_in > NARROW_IN else 20
    axes.set_yticks(range(len(names)), [_shortened(name, limit) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)  # the network's first layer on top
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _shortened(name: str, limit: int) -> str:
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-limit // 2 :]}"


def legend_above(axes: Axes, columns: int) -> None:
    """The legend outside of the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2)


def svg_element(figure: Figure, title: str, name: str, width_in: float) -> str:
    """The figure as an `<svg>` element whose ids differ from those of the page's other plots."""
    salt = f"{name}-{round(100 * width_in)}"
    with mpl.rc_context({"svg.hashsalt": salt}), io.BytesIO() as stream:
        FigureCanvasSVG(figure)  # without a canvas, savefig would ask for one that may need a display
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        text = stream.getvalue().decode()
    element = text[text.index("<svg") :].strip()
    # Definitions are named per figure; in one page the names must differ between figures, and the references with them.
    element = re.sub(r'(\bid="|\burl\(#|href="#)', rf"\g<1>{salt}-", element)
    return element.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
