"""What a network gains or loses over how much smaller it became: one plot for accuracy, one for speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.ticker

from results.plots import ACCENT, BASELINE, INK, PRUNED, WIDE_IN, legend_above, new_figure, plot_style, svg_element

_LOOKS = (("o", PRUNED), ("s", ACCENT), ("D", BASELINE), ("^", INK))


@dataclass(frozen=True)
class Point:
    """One network.

    Attributes:
        series: what it is one of; the legend's words.
        label: its name, written beside it.
        compression: times fewer weights of convolutions.
        value: in the unit of the plot.
        low: lower end of its interval.
        high: upper end.
    """

    series: str
    label: str
    compression: float
    value: float
    low: float | None = None
    high: float | None = None


def plot_trade_off(points: Sequence[Point], ylabel: str, title: str, name: str, level: float) -> str:
    """An SVG element: compression to the right, on a logarithmic axis.

    Args:
        points: at least one; of at most four series.
        ylabel: of the other axis, with its unit.
        title: for those who cannot see the plot.
        name: of the plot within a page.
        level: where nothing was gained or lost, drawn as a line.
    """
    with plot_style():
        figure, axes = new_figure(3.6, WIDE_IN)
        for number, series in enumerate(dict.fromkeys(point.series for point in points)):
            marker, colour = _LOOKS[number % len(_LOOKS)]
            own = [point for point in points if point.series == series]
            reach = [
                [point.value - (point.value if point.low is None else point.low) for point in own],
                [(point.value if point.high is None else point.high) - point.value for point in own],
            ]
            axes.errorbar(
                [point.compression for point in own],
                [point.value for point in own],
                yerr=reach,
                linestyle="none",
                marker=marker,
                color=colour,
                capsize=3,
                label=series,
            )
            for point in own:
                axes.annotate(
                    point.label, (point.compression, point.value), (6, 5), textcoords="offset points", fontsize=8
                )
        axes.axhline(level, color=INK, linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.set_xlim(1, 4 * max(point.compression for point in points))  # room for the last one's name
        axes.margins(y=0.15)
        axes.set_xlabel("times fewer CONV parameters")
        axes.set_ylabel(ylabel)
        legend_above(axes, 2)
        return svg_element(figure, title, name, WIDE_IN)
