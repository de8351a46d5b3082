"""``foveate train``: what foveate learns, a command for each kind."""

from __future__ import annotations

import typer

from .train_scorer import scorer

train = typer.Typer(name="train", help="Train a scorer that rates visual tokens, or a model of the testbed.")
train.command("scorer")(scorer)


@train.callback()
def options() -> None:
    """Train a scorer that rates visual tokens, or a model of the testbed."""
