"""The table that each job ends with."""

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], stream: TextIO | None = None) -> None:
    """Prints rows under headings; numbers align on the right and are never wrapped or cut.

    Args:
        columns: the headings.
        rows: as many cells each as there are columns; shown by `show`.
        stream: default standard output. On a terminal rich draws the table, anywhere else it is plain text.
    """
    stream = stream or sys.stdout
    cells = [[show(cell) for cell in row] for row in rows]
    numeric = [
        all(isinstance(row[column], int | float | None) for row in rows) and bool(rows)
        for column in range(len(columns))
    ]
    if stream.isatty():
        _print_rich(columns, cells, numeric, stream)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [columns, ["-" * width for width in widths], *cells]:
        aligned = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(aligned).rstrip(), file=stream)


def show(cell: object) -> str:
    """One cell as text: `12,345`, `0.1235`, `yes`, and `-` for None."""
    match cell:
        case None:
            return "-"
        case bool():
            return "yes" if cell else "no"
        case int():
            return f"{cell:,}"
        case float():
            return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
        case _:
            return str(cell)


def _print_rich(columns: Sequence[str], cells: list[list[str]], numeric: list[bool], stream: TextIO) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column, right in zip(columns, numeric, strict=True):
        table.add_column(Text(column), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console(file=stream)
    # Below this width rich would cut numbers; a terminal that is narrower still wraps the line itself.
    unlimited = console.options.update_width(100_000)
    console.width = max(console.width, Measurement.get(console, unlimited, table).minimum)
    console.print(table)
