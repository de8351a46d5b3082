"""``foveate models``: the model families that can be pruned."""

from __future__ import annotations

from .tables import show


def models() -> None:
    """List the model families that can be pruned, and what runs on any other image-text class of transformers."""
    from rich.console import Console
    from rich.table import Table

    from ..catalog import refused_by
    from ..models import generic_model, supported_models

    table = Table(title="Supported models", title_justify="left", show_lines=True)
    for heading in ("model type", "class", "sees", "runs all methods but"):
        table.add_column(heading, no_wrap=heading in ("model type", "class"))
    for row in (*supported_models(), generic_model()):
        table.add_row(row.model_type, row.class_name, ", ".join(row.modalities), ", ".join(refused_by(row)))
    console = Console()
    show(console, table)
    console.print("foveate methods NAME says why a method needs another model.")
    console.print("foveate check MODEL tells whether a checkpoint is pruned rightly, and which methods run on it.")
