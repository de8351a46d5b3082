"""Situations that the fuzzer found: each was silently wrong, or ended in another error than one of foveate's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.methods.toolkit.at_layer import AtLayer
from tiny_models import Zoo

from .helpers import gap, generate, kernels, logits, pair, single, visual


def blinded(z: Zoo, inputs: Any, mask: torch.Tensor, kept: torch.Tensor, layer: int) -> torch.Tensor:
    """Logits of what stays, of the unpruned model whose layers from `layer` on do not see what was dropped."""
    stay = torch.ones_like(visual(z, inputs)[0])
    stay[visual(z, inputs)[0].nonzero()[:, 0][~kept]] = False
    hidden = ~(stay | torch.eye(len(stay), dtype=torch.bool))

    def close(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": mask.masked_fill(hidden, torch.finfo(mask.dtype).min)}

    layers = z.model.model.language_model.layers[layer:]
    handles = [block.register_forward_pre_hook(close, with_kwargs=True) for block in layers]
    try:
        return logits(z, {**inputs, "attention_mask": mask}, use_cache=False)[:, stay]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 2])
def test_finite_values_of_an_own_mask_stay(llava: Zoo, layer: int, kernel: str) -> None:
    """A mask for pairs may add anything to the logits, such as what ALiBi adds; it is more than open and closed."""
    inputs = single(llava)
    length = inputs["input_ids"].shape[1]
    closed = ~torch.ones(length, length, dtype=torch.bool).tril()
    slope = -0.3 * (torch.arange(length)[:, None] - torch.arange(length)).abs().float()
    mask = slope.masked_fill(closed, torch.finfo(torch.float32).min)[None, None]
    with kernels(llava.model, kernel):
        with foveate.prune(llava.model, AtLayer(foveate.get_method("divprune"), layer), keep=0.25) as pruning:
            found = logits(llava, {**inputs, "attention_mask": mask}, use_cache=False)
            kept = pruning.report().images[0].kept
        assert torch.allclose(found, blinded(llava, inputs, mask, kept, layer), atol=2e-5)


@pytest.mark.parametrize("method", ["fastv", "restore"])
def test_masks_of_any_dtype(llava: Zoo, method: str) -> None:
    """The lowest float64 is none of float32, and the lowest float32 none of bfloat16, whatever the default dtype."""
    inputs = pair(llava)
    model = copy.deepcopy(llava.model).double()
    model.set_attn_implementation("eager" if method == "fastv" else "sdpa")
    with foveate.prune(model, method, keep=0.4), torch.no_grad():
        found = model(**{**inputs, "pixel_values": inputs["pixel_values"].double()}).logits
    with foveate.prune(llava.model, method, keep=0.4):
        assert torch.allclose(found.float(), logits(llava, inputs), atol=1e-3)


@pytest.mark.parametrize("trained", [True, False])
def test_rows_between_checkpointed_layers(trained: bool) -> None:
    """Reentrant checkpointing passes gradients through a layer's arguments, of which DeepStack's rows are none."""
    z = zoo_module.qwen3_vl()
    model, inputs = copy.deepcopy(z.model).train(), single(z)
    model.model.visual.requires_grad_(trained)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**inputs, use_cache=False).logits[:, -1].square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    with foveate.prune(model, AtLayer(foveate.get_method("divprune"), 1), keep=0.5):
        right = gradients()
        model.gradient_checkpointing_enable({"use_reentrant": True})
        if trained:
            with pytest.raises(foveate.RuntimeStateError, match="use_reentrant"):
                gradients()
            return
        found = gradients()
    assert found.keys() == right.keys()
    for name in right:
        assert torch.allclose(found[name], right[name], atol=1e-4 * float(right[name].abs().max().clamp_min(1))), name


def test_prompts_in_pieces(llava: Zoo) -> None:
    """Of two pictures a piece may hold the first, whose tokens were taken for the second's."""
    inputs, config = single(llava), copy.deepcopy(llava.model.generation_config)
    config.prefill_chunk_size, config.max_new_tokens, config.suppress_tokens = 8, 2, [*llava.visual_ids]
    for options in ({"prefill_chunk_size": 8}, {"generation_config": config}):
        with (
            foveate.prune(llava.model, "divprune", keep=0.4),
            pytest.raises(foveate.RuntimeStateError, match="prefill_chunk_size=8 cuts prompts into pieces"),
        ):
            llava.model.generate(**inputs, **options)
    with foveate.prune(llava.model, "divprune", keep=0.4):
        text = {"input_ids": torch.tensor([[1, *range(20, 40)]])}
        assert gap(generate(llava, text), generate(llava, text, prefill_chunk_size=8)) < 2e-5
