"""``foveate methods`` and ``foveate models``: what there is to choose from."""

from __future__ import annotations


def methods() -> None:
    """List the pruning methods."""
    from rich.console import Console
    from rich.table import Table

    from ..methods import get_method, method_class, method_names

    table = Table(title="Pruning methods", title_justify="left")
    for heading in ("name", "prunes", "needs", "paper"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for name in method_names():
        cls = method_class(name)
        needs = ", ".join(sorted(cue.value for cue in get_method(name).needs)) or "features only"
        table.add_row(name, cls.stage.value, needs, cls.provenance.paper)
    Console().print(table)


def models() -> None:
    """List the model families that can be pruned."""
    from rich.console import Console
    from rich.table import Table

    from ..models import supported_models

    table = Table(title="Supported models", title_justify="left")
    for heading in ("model type", "class", "sees", "cues that it can give"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "model type")
    for row in supported_models():
        cues = "\n".join(cue.value for cue in row.cues)
        table.add_row(row.model_type, row.class_name, ", ".join(row.modalities), cues)
    Console().print(table)
