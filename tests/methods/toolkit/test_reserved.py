"""Hyperparameters never collide with what `foveate.prune` is given beside them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar

import pytest

import foveate
from foveate.methods import Method, method_names, register_method
from foveate.methods.toolkit import registry
from foveate.methods.toolkit.registry import RESERVED, method_class
from foveate.methods.toolkit.settings import AT_LAYER, ENCODER_BLOCK, settable


def test_every_argument_is_reserved() -> None:
    arguments = {name for call in (foveate.prune, foveate.prune_inputs) for name in inspect.signature(call).parameters}
    assert arguments | {"name", AT_LAYER, ENCODER_BLOCK} == RESERVED
    assert not any(set(settable(method_class(name))) & RESERVED for name in method_names())


@pytest.mark.parametrize("field", sorted(RESERVED - {"name"}))
def test_a_field_of_that_name_is_refused(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    made = make_dataclass("Own", [(field, int, 1)], bases=(Method,), frozen=True)
    with pytest.raises(foveate.MethodError, match=f"own cannot have a hyperparameter '{field}'"):
        register_method("own")(made)
    assert "own" not in registry._METHODS


def test_also_where_the_decorators_come_the_other_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    with pytest.raises(foveate.MethodError, match="a hyperparameter 'keep'"):

        @dataclass(frozen=True)
        @register_method("own")
        class Own(Method):
            keep: int = 1

            def select(self, tokens: Any, count: Any) -> Any:
                raise NotImplementedError

    @register_method("other")
    @dataclass(frozen=True)
    class Other(Method):
        scope: ClassVar[str] = "is not a field"

        def select(self, tokens: Any, count: Any) -> Any:
            raise NotImplementedError

    assert foveate.get_method("other") == Other()


def test_wrappers_name_their_method_beside_that_of_prune() -> None:
    method: Any = foveate.get_method("cenprune", base=foveate.methods.Scope(alpha=2.0))
    assert method.inner == foveate.get_method("scope", alpha=2.0)
