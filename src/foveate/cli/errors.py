"""The one place where errors become a sentence on stderr and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import FoveateError

_STOPPED = 130  # what shells report of a program that Ctrl-C ended
# typer brings its own copy of click from some version on; the base of its own errors is right either way.
_UsageError: Any = typer.BadParameter.__bases__[0]


class InputError(FoveateError, ValueError):
    """An argument of a command, such as a picture or a folder, cannot be used."""


class SentenceGroup(TyperGroup):
    """A command group that reports expected errors without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; every expected error ends in one sentence and exit code 2.

        Expected are every FoveateError, file errors, and commands that are called the wrong way.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except _UsageError as error:
            path = error.ctx.command_path if getattr(error, "ctx", None) else "foveate"
            _fail(f"{str(error.format_message()).rstrip('.')}; see `{path} --help`.")
        except FoveateError as error:
            _fail(str(error))
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}." if error.filename and error.strerror else str(error))
        except KeyboardInterrupt:
            _fail("stopped.", _STOPPED)


@contextmanager
def going_on() -> Iterator[None]:
    """The part of a command that can be interrupted and resumed by the same command."""
    try:
        yield
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from here.", _STOPPED)


def _fail(sentence: str, code: int = 2) -> None:
    typer.echo(f"foveate: {' '.join(sentence.split())}", err=True)
    raise typer.Exit(code) from None
