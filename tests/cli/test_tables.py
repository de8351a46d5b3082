"""Tables in terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from foveate.cli.tables import show


def printed(width: int) -> str:
    table = Table(title="Fruit")
    for heading in ("name", "colour when it is ripe", "origin"):
        table.add_column(heading)
    table.add_row("pomegranate", "dark vermilion", "Afghanistan")
    table.add_row("pear", "", "Kyrgyzstan")
    console = Console(file=io.StringIO(), width=width)
    show(console, table)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [24, 30, 40, 80])
def test_no_word_is_cut_and_no_line_too_long(width: int) -> None:
    text = printed(width)
    for word in ("Fruit", "pomegranate", "vermilion", "Afghanistan", "pear", "Kyrgyzstan"):
        assert word in text
    assert max(map(len, text.splitlines())) <= width


def test_a_narrow_terminal_gets_rows_below_each_other() -> None:
    assert "│" in printed(80)
    narrow = printed(30)
    assert "│" not in narrow and "origin: Afghanistan" in narrow and narrow.count("colour when it is ripe: ") == 1
