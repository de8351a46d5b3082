"""``foveate train``: what foveate learns, a command for each kind."""

from __future__ import annotations

import typer

from .train_evidence import evidence
from .train_scorer import scorer
from .train_testbed import testbed

train = typer.Typer(
    name="train",
    help="Train a scorer of visual tokens, or a model of the testbed.",
)
train.command("scorer")(scorer)
train.command("evidence")(evidence)
train.command("testbed")(testbed)


@train.callback()
def options() -> None:
    """Train a scorer of visual tokens, or a model of the testbed."""
