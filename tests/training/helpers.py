"""What the tests of trained scorers share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.models import adapter_of
from tiny_models import Zoo


def entering(zoo: Zoo, batch: dict[str, Tensor]) -> dict[str, Any]:
    """The keyword arguments that the language model is called with, behind every hook that is attached."""
    found: dict[str, Any] = {}
    text = adapter_of(zoo.model).text
    handle = text.register_forward_pre_hook(lambda module, args, kwargs: found.update(kwargs), with_kwargs=True)
    zoo.model(**batch)
    handle.remove()
    return found
