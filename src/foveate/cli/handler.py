"""The one place where errors become a sentence on stderr and exit code 2."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import FoveateError


class InputError(FoveateError, ValueError):
    """An argument of a command, such as a picture or a folder, cannot be used."""


class SentenceGroup(TyperGroup):
    """A command group that reports expected errors without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; every FoveateError and file error ends in one sentence and exit code 2."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (FoveateError, OSError) as error:
            typer.echo(f"foveate: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
