"""``foveate methods`` and ``foveate models``: what there is to choose from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..tokens import Cue


def methods() -> None:
    """List the pruning methods."""
    from rich.console import Console
    from rich.table import Table

    from ..methods import method_names
    from ..methods.base import method_class

    table = Table(title="Pruning methods", title_justify="left", show_lines=True)
    for heading in ("name", "prunes", "needs", "paper"):
        table.add_column(heading, no_wrap=heading == "name")
    for name in method_names():
        cls = method_class(name)
        table.add_row(name, cls.stage.value, _needs(name), cls.provenance.paper)
    Console().print(table)


def models() -> None:
    """List the model families that can be pruned."""
    from rich.console import Console
    from rich.table import Table

    from ..models import supported_models

    table = Table(title="Supported models", title_justify="left", show_lines=True)
    for heading in ("model type", "class", "sees", "cues"):
        table.add_column(heading, no_wrap=heading in ("model type", "class"))
    for row in supported_models():
        table.add_row(row.model_type, row.class_name, ", ".join(row.modalities), _spelled(row.cues))
    Console().print(table)


def _needs(name: str) -> str:
    """What the method reads besides the features, or what it must be given before it can say."""
    from ..errors import MethodError
    from ..methods import get_method

    try:
        return _spelled(get_method(name).needs) or "features only"
    except MethodError as error:  # a hyperparameter without which there is no method
        return str(error).removeprefix(f"{name}: ").removeprefix("needs ").rstrip(".")


def _spelled(cues: Iterable[Cue]) -> str:
    return ", ".join(sorted(cue.name.lower().replace("_", " ") for cue in cues))
