"""What the runtime tests share: prompts of the zoo, generation settings, differences of logits."""

from __future__ import annotations

from typing import Any

import torch

import zoo
from zoo import Zoo

TEXTS = ["what is in the picture?", "a red square on a blue"]


def single(z: Zoo) -> dict[str, torch.Tensor]:
    """One prompt with one image."""
    return zoo.inputs(z, [[zoo.picture(84, 112, 0)]], TEXTS[:1])


def pair(z: Zoo) -> dict[str, torch.Tensor]:
    """Two prompts of different length with images of different size, left-padded."""
    return zoo.inputs(z, [[zoo.picture(84, 112, 0)], [zoo.picture(56, 168, 3)]], TEXTS)


def generate(z: Zoo, inputs: Any, **options: Any) -> Any:
    """Five greedy tokens with their logits; random models must not emit placeholders."""
    settings: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    settings |= {"suppress_tokens": list(z.visual_ids), "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad():
        return z.model.generate(**inputs, **(settings | options))


def logits(z: Zoo, inputs: Any, **options: Any) -> torch.Tensor:
    """Logits of one forward."""
    with torch.no_grad():
        return z.model(**inputs, **options).logits


def gap(a: Any, b: Any) -> float:
    """Largest difference of the logits of two generations."""
    return max(float((x - y).abs().max()) for x, y in zip(a.logits, b.logits, strict=True))


def visual(z: Zoo, inputs: Any) -> torch.Tensor:
    """(B, L) bool, true on placeholders."""
    return torch.isin(inputs["input_ids"], torch.tensor(z.visual_ids))
