"""Checks that several methods share: of hyperparameters that depend on each other or on the model, and of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import MethodError
from ...tokens import VisualTokens
from .base import ModelFacts


def check_layer_of(method: str, layer: int, facts: ModelFacts, low: int = 1, field: str = "layer") -> None:
    """Raise MethodError unless the model has a layer `layer` to prune at; `low` is the first that the method takes."""
    if layer >= facts.layers:
        raise MethodError(
            f"{method}: {field}={layer}, but {facts.label} has {facts.layers} layers; "
            f"use a layer in [{low}, {facts.layers - 1}]."
        )


def check_layers_of(method: str, layers: Sequence[int], facts: ModelFacts) -> None:
    """Raise MethodError unless the model has all the layers to prune at."""
    for layer in layers:
        check_layer_of(method, layer, facts, field="layers")


def check_undropped(method: str, tokens: VisualTokens) -> None:
    """Raise MethodError where an earlier stage dropped tokens, for methods that read whole grids."""
    if tokens.alive is not None and int(tokens.valid.sum()) < sum(tokens.sizes):
        raise MethodError(f"{method} reads whole grids, but tokens were dropped before it; let it prune first.")


def check_falling(method: str, shares: tuple[float, ...], stages: int) -> None:
    """Raise MethodError unless `shares` are falling numbers, one for each of so many stages."""
    if len(shares) != stages or list(shares) != sorted(shares, reverse=True):
        raise MethodError(f"{method}: shares={shares} must fall, one for each of {stages} layers.")
