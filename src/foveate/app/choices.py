"""Which methods a model runs, and with which sentence it refuses the others."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from ..catalog import facts_of, places_of
from ..errors import FoveateError
from ..methods import Where, method_names
from ..models import adapter_of
from ..runtime.planner import plan
from ..tokens import Grid

_KEEP = 0.25
_GRID, _COUNT = Grid(16, 16), 64  # of a picture that methods are asked about: what is for clips alone refuses it


class Choice(NamedTuple):
    """A method as the page offers it.

    Attributes:
        name: of the method.
        summary: what it does, in a sentence.
        where: the first place where it prunes.
        refusal: why the model does not run it, with what to do instead; empty for a method that it runs.
        note: what to know of how it runs on this model; empty for most.
    """

    name: str
    summary: str
    where: Where
    refusal: str = ""
    note: str = ""


def choices_for(model: Any) -> list[Choice]:
    """All methods, those that the model runs first, in the order of their names.

    The refusals are those that `foveate.prune` would give; the model stays as it is.

    Args:
        model: a supported model of transformers.
    """
    adapter = adapter_of(model)
    found = []
    for name in method_names():
        refusal = note = ""
        try:
            stages = plan(adapter, name, _KEEP, None, "original", {})
            for stage in stages:
                stage.method.check(_GRID, _COUNT)
            notes = [one for stage in stages for one in (stage.method.note, stage.note) if one is not None]
            note = " ".join(dict.fromkeys(one.text for one in notes if one.level >= logging.WARNING))
        except FoveateError as error:
            refusal = str(error)
        found.append(Choice(name, facts_of(name).summary, places_of(name)[0], refusal, note))
    return sorted(found, key=lambda choice: bool(choice.refusal))
