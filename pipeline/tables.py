"""Tables on standard output that stay readable in a narrow terminal, a pipe or a log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Print a table at its own width, one line a row.

    A line that is too long for the terminal is the terminal's to wrap: twelve columns folded into eighty characters
    leave three to each.

    Args:
        headings: one a column.
        rows: cells as text, taken literally.
        left: how many columns from the first on are text; the others are figures, set to the right.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, emoji=False)
    unbounded = console.options.update(width=10_000)
    console.width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    console.print(table, crop=False)
