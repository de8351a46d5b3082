"""Llama 4: what its adapter supplies, against transformers' own outputs."""

from __future__ import annotations

import torch

import tiny_families
import tiny_models
from foveate.models import adapter_of
from runtime.helpers import TEXTS, kernels

from .attention_spy import shown


def test_cues_are_means_over_the_patches_of_a_token() -> None:
    """The CLS token's row, which is the last, and what enters pixel shuffle, by average pooling."""
    z = tiny_families.llama4()
    pictures = [tiny_models.picture(84, 112, 0), tiny_models.picture(56, 84, 1)]
    inputs, adapter = tiny_models.inputs(z, [pictures], TEXTS[:1]), adapter_of(z.model)
    tokens = shown(z.model, inputs)
    entered: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    attention = adapter.vision_layers()[-1].self_attn
    handles = [
        adapter.projector.register_forward_pre_hook(lambda module, args: entered.append(args[0])),
        attention.register_forward_hook(lambda module, args, output: weights.append(output[1])),
    ]
    try:
        with kernels(z.model, "eager"), torch.no_grad():
            adapter.vision(inputs["pixel_values"])
    finally:
        for handle in handles:
            handle.remove()

    def pooled(patches: torch.Tensor) -> torch.Tensor:
        square = patches.mT.reshape(len(patches), -1, 8, 8)
        return torch.nn.functional.avg_pool2d(square, 2).flatten(2).mT

    row = weights[0][:, :, -1, :-1].mean(1)[..., None]
    assert torch.allclose(tokens.encoder_attention, pooled(row)[..., 0], atol=1e-6)
    assert torch.allclose(tokens.encoder_features, pooled(entered[0]), atol=1e-5)


def test_tokens_are_in_raster_order() -> None:
    """A change of the last pixels changes the last token's pixels only, before attention mixes them."""
    z = tiny_families.llama4()
    adapter = adapter_of(z.model)
    patches = torch.zeros(1, 64, 32)
    patches[0, 8 * 2 + 5] = 1.0  # row 2, column 5 of 8 x 8: row 1, column 2 of 4 x 4
    with torch.no_grad():
        changed = adapter.projector(patches) - adapter.projector(torch.zeros_like(patches))
    assert changed[0].abs().sum(-1).nonzero().flatten().tolist() == [4 * 1 + 2]
