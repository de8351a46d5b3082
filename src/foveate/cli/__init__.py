"""The command line; each module is named after its command.

Commands load torch and transformers only when they run, so that ``foveate --help`` answers at once.
"""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from ..version import __version__
from .app import show_page
from .ask import ask
from .batch import batch
from .calibrate import calibrate
from .check import check
from .demo import demo
from .errors import SentenceGroup
from .eval import evaluate
from .leaderboard import leaderboard
from .methods import methods
from .models import models
from .train import train
from .tune import tune
from .view import view

_NARROW = 72  # columns: in fewer, the boxes of help would cut off the names of options

app = typer.Typer(
    name="foveate",
    cls=SentenceGroup,
    help="Prune the visual tokens of multimodal language models: keep the few that matter.",
    no_args_is_help=True,
    rich_markup_mode="rich" if shutil.get_terminal_size().columns >= _NARROW else None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foveate {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Prune the visual tokens of multimodal language models: keep the few that matter."""


for command in (demo, ask, batch, view, methods, models, check, calibrate, tune, leaderboard):
    app.command()(command)
app.command("eval")(evaluate)
app.command("app")(show_page)
app.add_typer(train)


def main() -> None:
    """Entry point of the `foveate` command."""
    app()


__all__ = ["app", "main"]
