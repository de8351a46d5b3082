"""The command line: ``foveate demo``, ``ask``, ``view``, ``methods``, ``models`` and ``calibrate``.

Commands load torch and transformers only when they run, so that ``foveate --help`` answers at once.
"""

from __future__ import annotations

import typer

from .ask import ask
from .calibrate import calibrate
from .demo import demo
from .handler import SentenceGroup
from .listing import methods, models
from .view import view

app = typer.Typer(
    name="foveate",
    cls=SentenceGroup,
    help="Prune the visual tokens of multimodal language models: keep the few that matter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (demo, ask, view, methods, models, calibrate):
    app.command()(command)


def main() -> None:
    """Entry point of the `foveate` command."""
    app()


__all__ = ["app", "main"]
