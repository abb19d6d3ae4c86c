"""The result as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from results.figures import KIND_LABEL, milliseconds, speed_up_interval, summary_rows, warnings_of
from results.records import Checks, Result


def print_table(result: Result, console: Console | None = None) -> None:
    """Print the result for a person, on standard output unless another console is given."""
    console = console or Console(highlight=False)
    latency = result.latency_ms
    table = Table(title=Text(result.name), title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("dense", "pruned", "change"):
        table.add_column(heading, justify="right")
    for row in summary_rows(result):
        table.add_row(row.label, row.dense.text, row.pruned.text, row.change.text)
    console.print(table)
    for name, network in (("baseline", latency.baseline), ("pruned", latency.pruned)):
        p10, p90 = milliseconds(network.p10), milliseconds(network.p90)
        console.print(f"{name}: p10 to p90 {p10} to {p90}, {network.samples} samples", markup=False)
    console.print(f"Speed-up: {speed_up_interval(result)}", markup=False)
    for warning in warnings_of(result):
        console.print(f"Warning: {warning}", style="bold yellow", markup=False)
    console.print(f"Device: {latency.device} ({KIND_LABEL[latency.kind]})", markup=False)
    checks = [
        f"{name.replace('_', ' ')} {getattr(result.checks, name):.1e} (at most {getattr(result.tolerances, name):.0e})"
        for name in Checks.model_fields
    ]
    console.print(f"Checks: {', '.join(checks)}", markup=False)
