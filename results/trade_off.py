"""What a network gains or loses over how much smaller it became: one plot for accuracy, one for speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from results.plots import ACCENT, BASELINE, INK, PRUNED, WIDE_IN, legend_above, new_figure, plot_style, svg_element

_LOOKS = (("o", PRUNED), ("s", ACCENT), ("D", BASELINE), ("^", INK))
_MARK_PX = 9
# Where a name may stand, best first: offset in points, and what part of the name is there.
_PLACES = {
    (7, 4): ("left", "bottom"),
    (7, -4): ("left", "top"),
    (8, 0): ("left", "center"),
    (-7, 4): ("right", "bottom"),
    (-7, -4): ("right", "top"),
    (-8, 0): ("right", "center"),
    (0, 9): ("center", "bottom"),
    (0, -9): ("center", "top"),
}


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

    Several points of one compression and name, such as a network on several devices, are named once, at the highest.

    Args:
        points: at least one; of at most four series.
        ylabel: of the other axis, with its unit.
        title: for those who cannot see the plot.
        name: of the plot within a page.
        level: where nothing was gained or lost, drawn as a line.
    """
    with plot_style():
        figure, axes = new_figure(4.4, WIDE_IN)
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
        axes.axhline(level, color=INK, linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        reductions = [point.compression for point in points]
        axes.set_xlim(min(reductions) / 3, 3 * max(reductions))  # room for names
        axes.margins(y=0.15)
        axes.set_xlabel("times fewer CONV parameters")
        axes.set_ylabel(ylabel)
        legend_above(axes, 2)
        _name_points(axes, points)
        return svg_element(figure, title, name, WIDE_IN)


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Write each name beside its point, where it covers no point and no other name if there is such a place."""
    axes.figure.canvas.draw()  # only then is it known where everything lies
    marks = [
        Bbox.from_bounds(x - _MARK_PX / 2, y - _MARK_PX / 2, _MARK_PX, _MARK_PX)
        for x, y in (axes.transData.transform((point.compression, point.value)) for point in points)
    ]
    highest: dict[tuple[float, str], Point] = {}
    for point in sorted(points, key=lambda point: point.value):
        highest[point.compression, point.label] = point
    taken: list[Bbox] = []
    for point in sorted(highest.values(), key=lambda point: -point.value):
        best: tuple[int, Bbox, Annotation] | None = None
        for (right, up), (horizontal, vertical) in _PLACES.items():
            text = axes.annotate(
                point.label,
                (point.compression, point.value),
                (right, up),
                textcoords="offset points",
                fontsize=8,
                ha=horizontal,
                va=vertical,
            )
            box = text.get_window_extent()
            covered = sum(box.overlaps(other) for other in (*marks, *taken)) + (not _inside(box, axes))
            if best is None or covered < best[0]:
                if best is not None:
                    best[2].remove()
                best = covered, box, text
            else:
                text.remove()
        assert best is not None  # there are places
        taken.append(best[1])


def _inside(box: Bbox, axes: Axes) -> bool:
    frame = axes.get_window_extent()
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
