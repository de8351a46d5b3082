"""Checks of hyperparameters that several methods share."""

from __future__ import annotations

import math
from collections.abc import Collection

from ...errors import MethodError, near_miss
from ...tokens import VisualTokens
from .base import ModelFacts


def check_range(method: str, field: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise MethodError unless `value` is a number in [low, high]."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (low <= value <= high and math.isfinite(value)):
        allowed = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"a finite number of at least {low:g}"
        raise MethodError(f"{method}: {field}={value!r} must be {allowed}.")


def check_whole(method: str, field: str, value: int, low: int) -> None:
    """Raise MethodError unless `value` is a whole number of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise MethodError(f"{method}: {field}={value!r} must be a whole number of at least {low}.")


def check_choice(method: str, field: str, value: str, known: Collection[str]) -> None:
    """Raise MethodError unless `value` is one of `known`."""
    if value not in known:
        raise MethodError(f"{method}: {field}={value!r} is unknown{near_miss(str(value), known)}")


def check_layer_of(method: str, layer: int, facts: ModelFacts, low: int = 1) -> None:
    """Raise MethodError unless the model has a layer `layer` to prune at; `low` is the first that the method takes."""
    if layer >= facts.layers:
        raise MethodError(
            f"{method}: layer={layer}, but {facts.label} has {facts.layers} layers; "
            f"use a layer in [{low}, {facts.layers - 1}]."
        )


def check_rising(method: str, layers: tuple[int, ...]) -> None:
    """Raise MethodError unless `layers` are rising layers from 1 on, at least one."""
    for layer in layers:
        check_whole(method, "layers", layer, 1)
    if not layers or list(layers) != sorted(set(layers)):
        raise MethodError(f"{method}: layers={layers} must be rising layers, at least one.")


def check_undropped(method: str, tokens: VisualTokens) -> None:
    """Raise MethodError where an earlier stage dropped tokens, for methods that read whole grids."""
    if tokens.alive is not None and int(tokens.valid.sum()) < sum(tokens.sizes):
        raise MethodError(f"{method} reads whole grids, but tokens were dropped before it; let it prune first.")


def check_shares(method: str, shares: tuple[float, ...], stages: int) -> None:
    """Raise MethodError unless `shares` are falling numbers above 0, one for each of so many stages."""
    for share in shares:
        check_range(method, "shares", share, 1e-6)
    if len(shares) != stages or list(shares) != sorted(shares, reverse=True):
        raise MethodError(f"{method}: shares={shares} must fall, one for each of {stages} layers.")
