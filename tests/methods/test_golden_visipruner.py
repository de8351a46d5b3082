"""VisiPruner's choice against the authors' code: the filtering layer, what it keeps, and when vision is over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveate.importance.attention import contributions
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.golden import Case, cases, facts

SYSTEM = 35  # tokens before the images


def parts_of(case: Case, layer: int, there: Tensor) -> Tensor:
    """(n, 3) of one layer, 0 for image tokens that are not `there` (n,) any more."""
    weights, value = case.tensor(f"attention_{layer}"), case.tensor(f"values_{layer}")
    # A query of ones against keys of logarithms attends with these very weights.
    query, key = torch.ones(1, len(weights), 1), weights.log()[None, ..., None]
    found = contributions(query, key, value[None], 1.0, torch.ones(1, weights.shape[1], dtype=torch.bool))[0]
    out = torch.zeros(len(there), 3)
    out[there] = found[SYSTEM : SYSTEM + int(there.sum())]
    return out


@pytest.mark.parametrize("case", cases("visipruner", "llava"))
def test_layer_by_layer(case: Case) -> None:
    settings, result = case.settings, case.result
    names = {"fusion": "fusion", "contribution": "contribution", "still": "stable_cosine", "patience": "patience"}
    fields = {name: settings[key].item() for key, name in names.items()}
    method = get_method("visipruner", **fields).bind(facts("llava"))
    assert method == get_method("visipruner")  # the released figures are the defaults
    there = torch.ones(int(settings["tokens"]), dtype=torch.bool)
    columns, filtering, over = [], -1, -1
    for layer in range(int(settings["layers"])):
        columns.append(parts_of(case, layer, there))
        left = method.kept_behind(torch.stack(columns, 1))
        if left is not None and filtering < 0:
            filtering, there = layer, left
            assert left.nonzero()[:, 0].tolist() == case.kept
            pool = VisualTokens.of(torch.ones(len(left), 1), Grid(1, len(left)), llm_contributions=columns[-1][:, None])
            assert torch.equal(method.select(pool, left.sum()[None]).keep[0], left)
        elif left is not None and not left.any():
            over = layer
            break
    assert (filtering, over) == (int(result["filtering"]), int(result["over"]))
