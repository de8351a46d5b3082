"""Every selector as one operator of `torch.ops.foveate`, which `torch.compile` calls without looking inside.

What a selector checks depends on the numbers that it is given, and no compiler could trace that. So a selector that
finds itself being compiled calls its operator, and the operator runs the selector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import selection

# The parameters of each selector in their order. A count is a number, or else a tensor; a grid is frames, rows and
# columns, once or for each row of the batch, or else the tensor of places.
_COUNT = "SymInt count, Tensor? counts"
_GRID = "SymInt[] grid, Tensor? places"
_PARAMETERS = {
    "topk": f"Tensor scores, {_COUNT}, Tensor? valid",
    "stride": f"Tensor features, {_COUNT}, Tensor? valid",
    "random": f"Tensor features, {_COUNT}, Tensor? valid, int seed",
    "mmr": f"Tensor features, Tensor importance, {_COUNT}, float balance, Tensor? valid",
    "maxmin": f"Tensor features, {_COUNT}, Tensor? valid",
    "coverage": f"Tensor features, Tensor scores, {_COUNT}, float alpha, Tensor? valid",
    "dpp": f"Tensor features, Tensor relevance, {_COUNT}, Tensor? valid",
    "independent_set": f"Tensor features, Tensor scores, {_COUNT}, {_GRID}, float pivots, float threshold, "
    "float spatial_weight, Tensor? valid, bool pivots_suppress, str spatial='gaussian', "
    "int radius=2, int least_pivots=0",
}


def apart(count: int | Tensor) -> tuple[int, Tensor | None]:
    """A count as the operators take it."""
    return (0, count) if isinstance(count, Tensor) else (count, None)


def _register(name: str, parameters: str) -> None:
    torch.library.define(f"foveate::{name}", f"({parameters}) -> Tensor")
    names = [parameter.partition("=")[0].split()[-1] for parameter in parameters.split(", ")]

    @torch.library.impl(f"foveate::{name}", "CompositeExplicitAutograd")
    def run(*arguments: Any) -> Tensor:
        given = dict(zip(names, arguments, strict=False))  # what is left out has the selector's own default
        for number, tensor in (("count", "counts"), ("grid", "places")):
            instead = given.pop(tensor, None)
            if instead is not None:
                given[number] = instead
            elif number == "grid" and number in given:
                triples = [tuple(given[number][i : i + 3]) for i in range(0, len(given[number]), 3)]
                given[number] = triples if len(triples) > 1 else triples[0]
        keep: Tensor = getattr(selection, name)(**given)
        return keep.contiguous()

    @torch.library.register_fake(f"foveate::{name}")
    def shape(tokens: Tensor, *rest: Any) -> Tensor:
        return tokens.new_empty(tokens.shape if name == "topk" else tokens.shape[:-1], dtype=torch.bool)


for _name, _parameters in _PARAMETERS.items():
    _register(_name, _parameters)
