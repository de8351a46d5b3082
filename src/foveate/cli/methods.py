"""``foveate methods``: the pruning methods, and all about one."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer

from .early import complete_method, require_methods
from .tables import show

PUBLISHED = "Published settings: what these are on each model family, unless you set them"


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Tell all about this method.", autocompletion=complete_method),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the pruning methods, or tell all about one."""
    if name is not None:
        require_methods([name])

    from rich.console import Console
    from rich.table import Table

    from ..catalog import needs_of, places_of
    from ..methods import method_names
    from ..methods.toolkit.base import in_words
    from ..methods.toolkit.registry import method_class

    if as_json:
        shown = [_to_dict(one) for one in (method_names() if name is None else [name])]
        typer.echo(json.dumps(shown if name is None else shown[0], indent=2))
        return
    if name is not None:
        _method(name)
        return
    table = Table(title="Pruning methods", title_justify="left", show_lines=True)
    for heading in ("name", "prunes", "needs", "paper"):
        table.add_column(heading, no_wrap=heading == "name")
    for name in method_names():
        cls = method_class(name)
        table.add_row(name, in_words(places_of(name)), needs_of(name), cls.provenance.source)
    show(Console(), table)


def _to_dict(name: str) -> dict[str, Any]:
    """All about a method as JSON data."""
    from ..catalog import facts_of

    return dataclasses.asdict(facts_of(name))


def _method(name: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..catalog import facts_of

    def plain(text: str) -> Text:
        return Text(text.replace("``", "`"))  # as Markdown writes code

    one, console = facts_of(name), Console()
    facts = Table.grid(padding=(0, 2))
    for label, fact in one.facts.items():
        facts.add_row(Text(label, style="bold"), plain(fact))
    console.print(Text(one.summary, style="bold"))
    if one.about:
        console.print(plain(f"\n{one.about}\n"))
    console.print(facts)
    if not one.hyperparameters:
        return
    table = Table(title="Hyperparameters", title_justify="left", show_lines=True)
    for heading in ("name", "type", "must be", "default", "meaning"):
        table.add_column(heading, no_wrap=heading == "name")
    for field in one.hyperparameters:
        table.add_row(*map(plain, (field.name, field.type, field.constraint, field.default, field.description)))
    show(console, table)
    if not one.published:
        return
    table = Table(title=PUBLISHED, title_justify="left", show_lines=True)
    table.add_column("name", no_wrap=True)
    for settings in one.published:
        table.add_column(", ".join(settings.families))
    for field_name in one.published[0].values:
        table.add_row(*map(Text, (field_name, *(settings.values[field_name] for settings in one.published))))
    show(console, table)
