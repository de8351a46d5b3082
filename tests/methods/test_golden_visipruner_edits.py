"""VisiPruner's shallow layers against the authors' code: the weights of attention to one image and to two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foveate.grouping import Span
from foveate.methods import get_method
from foveate.runtime.cache import CacheState
from foveate.runtime.seams.attention import call_with_edits
from foveate.runtime.state import Call, CallStack, ForwardState
from foveate.tokens import Grid
from methods.golden import Case, cases

SYSTEM = 35  # tokens before the images


def edited(weights: Tensor, edits: Any, images: list[int]) -> Tensor:
    """Weights (H, L, L) as `edits` leave them, read off values that are one-hot."""
    length = weights.shape[-1]
    starts = [SYSTEM + sum(images[:i]) for i in range(len(images))]
    spans = [
        Span(0, "image", order, Grid(1, n), torch.arange(start, start + n))
        for order, (start, n) in enumerate(zip(starts, images, strict=True))
    ]
    stack, embeds = CallStack(), torch.zeros(1, length, 1)
    stack.forward = ForwardState(Call(spans, length), CacheState(None), embeds, None, None, 0)

    def kernel(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        return (weights @ value).transpose(1, 2), None

    value = torch.eye(length).expand(1, len(weights), length, length)
    out, _ = call_with_edits(stack, edits, kernel, nn.Module(), value, value, value)
    return out[0].transpose(0, 1)


@pytest.mark.parametrize("case", cases("visipruner_edit", "llava"))
def test_edits(case: Case) -> None:
    layers = 40 if case.settings["size"] else 32
    edits = [edit for edit in get_method("visipruner").edits(layers) if edit.layer == case.settings["layer"]]
    total, number = int(case.settings["tokens"]), int(case.settings["images"])
    images = [total // number] * (number - 1)
    found = edited(case.tensor("attention"), edits, [*images, total - sum(images)])
    torch.testing.assert_close(found, torch.from_numpy(case.result["attention"]))


@pytest.mark.parametrize(("first", "expected"), [("sink", [0.6, 0, 0, 0]), ("half", [0, 0, 0.2, 0.1])])
def test_the_first_token_of_the_first_image_has_it_all(first: Any, expected: list[float]) -> None:
    weights = torch.zeros(1, SYSTEM + 5, SYSTEM + 5)
    weights[0, -1, SYSTEM:-1] = torch.tensor([0.3, 0.0, 0.2, 0.1])
    edits = [edit for edit in get_method("visipruner", layer0_edit=first).edits(32) if edit.layer == 0]
    torch.testing.assert_close(edited(weights, edits, [2, 2])[0, -1, SYSTEM:-1], torch.tensor(expected))
    apart = [edit for edit in get_method("visipruner", layer0_edit=first, images="apart").edits(32) if edit.layer == 0]
    own = {"sink": [0.3, 0, 0.3, 0], "half": [0, 0, 0, 0.1]}[first]
    torch.testing.assert_close(edited(weights, apart, [2, 2])[0, -1, SYSTEM:-1], torch.tensor(own))
