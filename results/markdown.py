"""Markdown: tables, and `report.md`, the result in the few lines that fit into a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from results.figures import KIND_LABEL, milliseconds, speed_up_interval, summary_rows, warnings_of
from results.records import Checks
from results.report_data import ReportData


def report_markdown(data: ReportData) -> str:
    """The report as GitHub-flavoured markdown."""
    result = data.result
    latency = result.latency_ms
    warnings = [f"**Warning:** {_cell(warning)}" for warning in warnings_of(result)]
    lines = [
        f"## {_cell(result.name)}",
        "",
        "| | dense | pruned | change |",
        "|---|--:|--:|--:|",
        *(
            f"| {row.label} | {row.dense.text} | {row.pruned.text} | {row.change.text} |"
            for row in summary_rows(result)
        ),
        "",
        f"Speed-up {speed_up_interval(result)} on {_cell(latency.device)}: **{KIND_LABEL[latency.kind]}**.",
        "",
        *(line for warning in warnings for line in (warning, "")),
        f"| latency ({latency.kind}) | samples | min | p10 | median | mean | p90 | p99 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, network in (("baseline", latency.baseline), ("pruned", latency.pruned)):
        figures = (network.min, network.p10, network.median, network.mean, network.p90, network.p99)
        lines.append(f"| {name} | {network.samples} | {' | '.join(map(milliseconds, figures))} |")
    lines += ["", "| check, largest difference of logits | found | at most |", "|---|--:|--:|"]
    for name in Checks.model_fields:
        found, allowed = getattr(result.checks, name), getattr(result.tolerances, name)
        lines.append(f"| {name.replace('_', ' ')} | {found:.2e} | {allowed:.0e} |")
    lines += ["", *(f"- {_cell(label)}: {_cell(text)}" for label, text in data.method.items())]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are already text."""
    lines = [" | ".join(heads), "|".join("---" for _ in heads), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def _cell(text: str) -> str:
    """`text` without the characters that would end a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")
