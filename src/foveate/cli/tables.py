"""What commands print: tables that stay readable in narrow terminals, and numbers of things."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_ANY_WIDTH = 10_000


def show(console: Console, table: Table) -> None:
    """Print a table; where its columns do not fit with whole words, its rows one below the other.

    A row then begins with its first cell, and each other cell stands behind the heading of its column.
    """
    from rich.padding import Padding
    from rich.text import Text

    needed = console.measure(table, options=console.options.update(width=_ANY_WIDTH, max_width=_ANY_WIDTH)).minimum
    if needed + len(table.columns) <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(Text(str(table.title), style="italic"))
    first, *others = ([_text(cell) for cell in column.cells] for column in table.columns)
    headings = [str(column.header) for column in table.columns[1:]]
    for row, opening in enumerate(first):
        console.print(Text.assemble(opening, style="bold"))
        for heading, cells in zip(headings, others, strict=True):
            if cells[row].plain:
                console.print(Padding(Text.assemble((f"{heading}: ", "dim"), cells[row]), (0, 0, 0, 2)))


def count(number: int, one: str) -> str:
    """A number of things, in words."""
    return f"{number} {one}{'s' * (number != 1)}"


def _text(cell: object) -> Text:
    from rich.text import Text

    return cell if isinstance(cell, Text) else Text(str(cell))
