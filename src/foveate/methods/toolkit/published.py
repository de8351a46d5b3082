"""Published settings: hyperparameters whose value the authors chose anew for each model family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Published:
    """The default of a method's field; made by `published`.

    As a descriptor it sees what the field of an instance is given: itself, where nobody named a value. So a method
    knows which of its settings are the user's, which win, and which follow the model when the method is bound.
    """

    def __init__(self, default: Any, families: Mapping[str, Any]) -> None:
        self.default, self.families = default, dict(families)
        self._name = ""

    def __repr__(self) -> str:
        others = ", ".join(f"{value!r} on {family}" for family, value in self.families.items())
        return f"{self.default!r} ({others})"

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance.__dict__[self._name]

    def __set__(self, instance: Any, value: Any) -> None:
        unset = instance.__dict__.get(_UNSET, frozenset())
        if value is self:
            value, unset = self.default, unset | {self._name}
        else:
            unset = unset - {self._name}
        instance.__dict__.update({self._name: value, _UNSET: unset})

    def on(self, lineage: Sequence[str]) -> Any:
        """The value for a model of the first family of `lineage` that one was published for."""
        return next((self.families[family] for family in lineage if family in self.families), self.default)


_UNSET = "_unset"


def published(default: T, **families: T) -> T:
    """A hyperparameter's default that follows the model: ``window: int = published(6, qwen2_5_vl=4)``.

    Args:
        default: the paper's value, for every family that none is named for; what an unbound method has.
        families: the authors' values by model family, as transformers calls it (``config.model_type``).
    """
    return cast(T, Published(default, families))


def unset_settings(method: object) -> frozenset[str]:
    """The names of a method's published settings that nobody gave a value."""
    return cast(frozenset[str], method.__dict__.get(_UNSET, frozenset()))
