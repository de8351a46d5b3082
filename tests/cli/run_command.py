"""Commands from the outside."""

from __future__ import annotations

import functools

from typer import testing
from typer.testing import CliRunner, Result

from foveate.cli import app

# Typer builds all commands anew at every call, which takes longer than most of them do.
testing._get_command = functools.cache(testing._get_command)


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def assert_one_sentence(result: Result, *words: str) -> None:
    """Nothing but one sentence, which holds these words."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("foveate: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0]
