"""What a server tells when it starts: that the plugin is loaded, and what it does with requests that do not choose."""

from __future__ import annotations

import logging
from typing import Any

from ...methods.toolkit.notes import Note
from ...version import __version__
from . import ARCHITECTURES
from .config import LIMITS_KEY
from .guard import explain_unknown, read_settings
from .log import LOGGER
from .settings import ServerSettings

_LIKE_A_PERCENTAGE = range(2, 101)


def announce(model_config: Any, chooses: bool, refusal: str | None = None) -> None:
    """Log one line about a server, and a warning for each setting that may mean something else than was meant.

    Args:
        model_config: vLLM's.
        chooses: whether requests can carry arguments.
        refusal: why the processor of the model prunes nothing, as a sentence, where it is made already.
    """
    for note in notes_of(model_config, read_settings(model_config), chooses, refusal):
        LOGGER.log(note.level, note.text)


def notes_of(model_config: Any, settings: ServerSettings, chooses: bool, refusal: str | None = None) -> list[Note]:
    """The line, and the warnings."""
    name, request = model_config.architecture, settings.resolve({})
    loaded = f"foveate {__version__} is loaded"
    if name not in ARCHITECTURES:
        refused = "; requests that ask for it are refused" if chooses else ""
        return [Note(f"{loaded}, but {explain_unknown(model_config)}{refused}.")]
    if reason := refusal or getattr(model_config.hf_config, LIMITS_KEY, {}).get("all"):
        return [Note(f"{loaded} for {name}, but nothing can be pruned: {reason}")]
    off = "because --trust-request-mm-kwargs is off"
    what = "frame" if settings.scope == "frame" else "image"
    if request is not None:
        others = "requests may choose otherwise" if chooses else f"requests cannot choose otherwise, {off}"
        stages: list[tuple[str, Any]] = [
            (one.name, keep) for one, keep in zip(settings.inside, request.encoder, strict=False) if keep != 1.0
        ]
        if not request.encoder or request.method != settings.inside[-1].name:
            stages.append((request.method, request.budget.keep))
        amounts = " and ".join(f"{name} keeps {_amount(keep)}" for name, keep in stages)
        line = f"by default {amounts} of each {what}; {others}."
    elif chooses:
        line = "no default, so that only requests that choose are pruned."
    else:
        line = f"no default, and requests cannot choose, {off}, so that nothing is pruned."
    warnings = []
    if request is not None and isinstance(count := request.budget.keep, int) and count in _LIKE_A_PERCENTAGE:
        warnings.append(
            f"keep={count} keeps {count} tokens of each {what}, not {count} %; write '{count}%' for a percentage."
        )
    idle = [key for key in ("method", "scope") if key in settings.given]
    if request is None and idle and "keep" not in settings.given:
        warnings.append(
            f"a default {' and '.join(idle)} without a default keep prunes nothing, unless a request gives "
            "foveate_keep; set FOVEATE_KEEP, or keep in --hf-overrides, as well."
        )
    return [
        Note(f"{loaded} for {name}: {line}"),
        *(Note(f"foveate: {warning}", logging.WARNING) for warning in warnings),
    ]


def _amount(keep: Any) -> str:
    return f"{keep} tokens" if isinstance(keep, int) else f"{100 * keep:.6g} %"
