"""Every selector as one operator of `torch.ops.foveate`, which `torch.compile` calls without looking inside.

What a selector checks depends on the numbers that it is given, which no compiler can trace. So a selector that is being
compiled calls its operator, and the operator runs the selector. Each selector's module registers its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# An operator's parameters have one type each: a count is a number, or else a tensor; a grid is frames, rows and
# columns, once or for each row of the batch, or else the tensor of coordinates.
COUNT = "SymInt count, Tensor? counts"
GRID = "SymInt[] grid, Tensor? coordinates"


def split_count(count: int | Tensor) -> tuple[int, Tensor | None]:
    """A count as the two parameters of `COUNT`."""
    return (0, count) if isinstance(count, Tensor) else (count, None)


def register(select: Callable[..., Tensor], parameters: str) -> None:
    """Register a selector as the operator ``foveate::<its name>``.

    Args:
        select: the selector. Its mask has the shape of its first argument, without the last dimension of features.
        parameters: of the operator, in the schema language of torch, in the order of the selector's own; `COUNT` and
            `GRID` stand for its count and grid.
    """
    name = f"foveate::{select.__name__}"
    torch.library.define(name, f"({parameters}) -> Tensor")
    names = [parameter.partition("=")[0].split()[-1] for parameter in parameters.split(", ")]

    @torch.library.impl(name, "CompositeExplicitAutograd")
    def run(*arguments: Any) -> Tensor:
        given = dict(zip(names, arguments, strict=False))  # what is left out has the selector's own default
        if (counts := given.pop("counts", None)) is not None:
            given["count"] = counts
        if (coordinates := given.pop("coordinates", None)) is not None:
            given["grid"] = coordinates
        elif "grid" in given:
            triples = [tuple(given["grid"][i : i + 3]) for i in range(0, len(given["grid"]), 3)]
            given["grid"] = triples if len(triples) > 1 else triples[0]
        return select(**given).contiguous()

    @torch.library.register_fake(name)
    def mask_shape(tokens: Tensor, *rest: Any) -> Tensor:
        return tokens.new_empty(tokens.shape if names[0] == "scores" else tokens.shape[:-1], dtype=torch.bool)
