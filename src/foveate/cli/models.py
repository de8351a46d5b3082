"""``foveate models``: the model families that can be pruned."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .tables import show

if TYPE_CHECKING:
    from ..models import SupportedModel


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the model families that can be pruned, and what runs on any other image-text class of transformers."""
    from rich.console import Console
    from rich.table import Table

    from ..catalog import refused_by
    from ..models import generic_model, supported_models

    rows = (*supported_models(), generic_model())
    if as_json:
        typer.echo(json.dumps([_to_dict(row) for row in rows], indent=2))
        return
    table = Table(title="Supported models", title_justify="left", show_lines=True)
    for heading in ("model type", "class", "sees", "runs all methods but"):
        table.add_column(heading, no_wrap=heading in ("model type", "class"))
    for row in rows:
        table.add_row(row.model_type, row.class_name, ", ".join(row.modalities), ", ".join(refused_by(row)))
    console = Console()
    show(console, table)
    console.print("foveate methods NAME says why a method needs another model.")
    console.print("foveate check MODEL tells whether a checkpoint is pruned rightly, and which methods run on it.")


def _to_dict(row: SupportedModel) -> dict[str, Any]:
    """A family as JSON data."""
    from ..catalog import refused_by

    return {
        "model_type": row.model_type,
        "class": row.class_name,
        "modalities": list(row.modalities),
        "refused_methods": list(refused_by(row)),
    }
