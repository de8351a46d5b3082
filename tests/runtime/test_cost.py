"""FLOPs against torch's own counter, KV bytes against a real cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.runtime.compat import cache_of_output
from tiny_models import Zoo

from .helpers import pair, single, torch_flops

LATE = AtLayer(foveate.get_method("divprune"), 2)


def counted(z: Zoo, inputs: dict[str, torch.Tensor]) -> int:
    return torch_flops(z.model, lambda: z.model(**inputs, logits_to_keep=1))


@pytest.mark.parametrize("method", ["random", LATE], ids=str)
def test_flops_are_those_that_torch_counts(zoo: Zoo, method: Any) -> None:
    inputs = single(zoo)
    plain = counted(zoo, inputs)
    with foveate.prune(zoo.model, method, keep=0.4) as pruning:
        pruned = counted(zoo, inputs)
        report = pruning.report()
    # torch also counts the multiplication inside the rotary embedding, which the report leaves out.
    assert report.text_flops_before + report.vision_flops == pytest.approx(plain, rel=0.01)
    assert report.text_flops + report.vision_flops == pytest.approx(pruned, rel=0.01)
    assert pruned < 0.95 * plain


@pytest.mark.parametrize("method", ["divprune", LATE, ["divprune", "fastv"]], ids=str)
def test_kv_bytes_are_those_of_the_cache(zoo: Zoo, method: Any) -> None:
    inputs = single(zoo)
    keep = [0.6, 0.2] if isinstance(method, list) else 0.4

    def held(cache: Any) -> int:
        return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))

    with torch.no_grad():
        plain = held(cache_of_output(zoo.model(**inputs)))
        with foveate.prune(zoo.model, method, keep=keep) as pruning:
            pruned = held(cache_of_output(zoo.model(**inputs)))
            report = pruning.report()
    assert (report.kv_bytes_before, report.kv_bytes) == (plain, pruned)
    assert pruned < plain


def test_padding_costs_nothing_in_the_account(zoo: Zoo) -> None:
    """A batch is the sum of its prompts, although its rows are padded to one length."""
    both = pair(zoo)
    total = [0.0, 0, 0.0]
    with foveate.prune(zoo.model, "divprune", keep=0.4) as pruning, torch.no_grad():
        zoo.model(**both)
        batch = pruning.report()
        for row, grid in enumerate(batch.images):
            alone = {k: v[row : row + 1, -batch.prompt_tokens_before[row] :] for k, v in both.items() if v.ndim == 2}
            zoo.model(**only_image(both, row, alone))
            one = pruning.report()
            assert one.images[0].grid == grid.grid
            total = [a + b for a, b in zip(total, (one.text_flops, one.kv_bytes, one.vision_flops), strict=True)]
    assert total == pytest.approx([batch.text_flops, batch.kv_bytes, batch.vision_flops])


def only_image(both: dict[str, torch.Tensor], row: int, alone: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if "image_grid_thw" not in both:
        return {**alone, "pixel_values": both["pixel_values"][row : row + 1]}
    shapes = both["image_grid_thw"]
    pixels = both["pixel_values"].split(shapes.prod(-1).tolist())[row]
    words = {k: v for k, v in alone.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}
    return {**words, "pixel_values": pixels, "image_grid_thw": shapes[row : row + 1]}
