"""Short hashes of what answers depend on besides settings: the model's weights, and what was learned for a method."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FoveateError
from ..methods import Method
from ..methods.base import ModelFacts

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
_BEGINNING = 64  # elements that are hashed as they are


def fingerprint(model: nn.Module) -> str:
    """A short hash of a model's weights: of their shapes, their beginnings and the sums of all their bits."""
    return _hashed(model.named_parameters())


def learned(methods: Sequence[Method], facts: ModelFacts) -> dict[str, str]:
    """Of each method that has them on this model, a short hash of its scorer or attention prior."""
    found = {}
    for method in methods:
        try:
            tensors = list(_tensors(method.bind(facts)))
        except FoveateError:  # one that cannot run here is told of where it is asked
            continue
        if tensors:
            found[method.name] = _hashed(tensors)
    return found


def _hashed(tensors: Any) -> str:
    hashed = hashlib.sha256()
    for name, tensor in tensors:
        bits = tensor.detach().flatten().view(_INTEGERS[tensor.element_size()])
        hashed.update(f"{name} {tuple(tensor.shape)} {int(bits.sum(dtype=torch.int64))}".encode())
        hashed.update(bits[:_BEGINNING].cpu().numpy().tobytes())
    return hashed.hexdigest()[:16]


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Those that a dataclass was made with, however deep, with their names."""
    if isinstance(value, Tensor):
        yield name, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.init:
                yield from _tensors(getattr(value, field.name), f"{name}.{field.name}")
