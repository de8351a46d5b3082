"""Every error that foveate raises on purpose: one clear sentence that names the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FoveateError(Exception):
    """Base class of all errors raised by foveate."""


class BudgetError(FoveateError, ValueError):
    """The `keep` value is not a fraction, a percentage or a token count."""


class ConfigError(FoveateError, ValueError):
    """A pruning configuration cannot be read or written."""


class SelectionError(FoveateError, ValueError):
    """A selector was given tensors that it cannot choose from."""


class MethodError(FoveateError, ValueError):
    """A method is unknown, badly configured or lacks something that it needs."""


class ModelError(FoveateError, ValueError):
    """The model is not supported, or cannot give a cue that the method needs."""


class RequestError(FoveateError, ValueError):
    """What a server was asked, or how it was set up, is not understood."""


class RuntimeStateError(FoveateError, RuntimeError):
    """Pruning was asked for something that its current state does not allow."""


_NEAR = 0.65  # how alike two names are, from 0 to 1, for the one to be a misspelling of the other


def near_miss(name: str, known: Iterable[str]) -> str:
    """A suffix such as ``; did you mean 'idpruner'?`` followed by the known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=_NEAR)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(names)}."
