"""Every error that foveate raises on purpose: one clear sentence that names the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FoveateError(Exception):
    """Base class of all errors raised by foveate.

    Examples:
        >>> try:
        ...     foveate.prune(model, "idpruner", keep=2.5)
        ... except foveate.FoveateError as error:
        ...     print(type(error).__name__)
        BudgetError
    """


class BudgetError(FoveateError, ValueError):
    """The `keep` value is not a fraction, a percentage or a token count.

    Examples:
        >>> foveate.Budget(2.5)
        Traceback (most recent call last):
            ...
        foveate.errors.BudgetError: keep=2.5 is out of range. Give a fraction in (0, 1] such as 0.25, ...
    """


class ConfigError(FoveateError, ValueError):
    """A pruning configuration cannot be read or written.

    Examples:
        >>> foveate.PruningConfig.from_dict({"kep": 0.25})
        Traceback (most recent call last):
            ...
        foveate.errors.ConfigError: a pruning configuration has no key 'kep'; did you mean 'keep'? ...
    """


class SelectionError(FoveateError, ValueError):
    """A selector was given tensors that it cannot choose from.

    Examples:
        >>> foveate.selection.topk(torch.tensor([0.1, float("nan")]), 1)
        Traceback (most recent call last):
            ...
        foveate.errors.SelectionError: ...
    """


class MethodError(FoveateError, ValueError):
    """A method is unknown, badly configured or lacks something that it needs.

    Examples:
        >>> foveate.get_method("idpuner")
        Traceback (most recent call last):
            ...
        foveate.errors.MethodError: unknown method 'idpuner'; did you mean 'idpruner'? ...
    """


class ModelError(FoveateError, ValueError):
    """The model is not supported, or cannot give a cue that the method needs.

    Examples:
        >>> foveate.prune(torch.nn.Linear(2, 2), "idpruner")
        Traceback (most recent call last):
            ...
        foveate.errors.ModelError: ...
    """


class RequestError(FoveateError, ValueError):
    """What a server was asked, or how it was set up, is not understood.

    Examples:
        >>> from foveate.serving.vllm.settings import ServerSettings
        >>> ServerSettings.read({"kep": 0.25}, {})
        Traceback (most recent call last):
            ...
        foveate.errors.RequestError: the server's foveate settings have an unknown key 'kep'; did you mean 'keep'? ...
    """


class RuntimeStateError(FoveateError, RuntimeError):
    """Pruning was asked for something that its current state does not allow.

    Examples:
        >>> pruning = foveate.prune(model, "divprune", keep=0.25)
        >>> pruning.report()
        Traceback (most recent call last):
            ...
        foveate.errors.RuntimeStateError: nothing to report yet: run the model on a prompt with an image first.
        >>> pruning.detach()
    """


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, without its full stop, to stand within a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


_NEAR = 0.65  # how alike two names are, from 0 to 1, for the one to be a misspelling of the other


def near_miss(name: str, known: Iterable[str]) -> str:
    """A suffix such as ``; did you mean 'idpruner'?`` followed by the known names."""
    names = sorted(known)
    if not names:
        return "; it has none."
    close = difflib.get_close_matches(name, names, n=1, cutoff=_NEAR)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(names)}."


# What is not a method's name, but is taken for one.
_NOT_NAMES = {
    "guided": "guided has no name to be chosen by, as a loaded model goes with it: give foveate.guided(small=...) to "
    "foveate.prune in Python; see docs/guides/guided.md.",
}


def explain_unknown_method(name: object, known: Iterable[str]) -> str:
    """The sentence on a name that is not a method's: what was meant, as far as that can be told, and what lists them.

    Examples:
        >>> from foveate.errors import explain_unknown_method
        >>> explain_unknown_method("divprun", ["divprune", "idpruner"])
        "unknown method 'divprun'; did you mean 'divprune'? `foveate methods` lists all."
    """
    if str(name) in _NOT_NAMES:
        return _NOT_NAMES[str(name)]
    meant, _, _ = near_miss(str(name), known).partition(" Known:")  # which are dozens
    return f"unknown method {name!r}{meant} `foveate methods` lists all."
