"""The sentences with which a method is refused that does not go with a model: for messages and for the manual."""

from __future__ import annotations

from collections.abc import Iterable

from ..tokens import Cue


def lacks_cues(model: str, method: str, missing: Iterable[Cue]) -> str:
    """The model cannot give what the method reads."""
    lacking = ", ".join(sorted(cue.value for cue in missing))
    return f"{model} cannot give what {method} needs: {lacking}; choose another method."


def takes_whole_images(model: str, method: str) -> str:
    """Patches cannot be left out of the model's vision encoder."""
    return (
        f"{method} leaves patches out of the vision encoder, but that of {model} takes whole images of one size; use a "
        "method that prunes before the LLM, such as 'divprune'."
    )
