"""DeepStack rows reach the tokens that they belong to, wherever tokens were dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.methods.toolkit.at_layer import AtLayer
from runtime.helpers import TEXTS, gap, generate, logits, pair, single
from tiny_models import Zoo


@pytest.fixture
def qwen3() -> Zoo:
    return zoo_module.qwen3_vl()


def image_and_clip(z: Zoo) -> dict[str, torch.Tensor]:
    """One prompt with an image, then a clip."""
    image, clip = single(z), zoo_module.video_inputs(z, 2, 2, 3)
    words = ("input_ids", "attention_mask", "mm_token_type_ids")
    media = {k: v for both in (image, clip) for k, v in both.items() if k not in words}
    return {**{k: torch.cat([image[k], clip[k]], 1) for k in words}, **media}


def given_to_the_language_model(z: Zoo, inputs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    text = z.model.model.language_model
    handle = text.register_forward_pre_hook(lambda module, args, kwargs: found.update(kwargs), with_kwargs=True)
    logits(z, inputs)
    handle.remove()
    return found


def test_rows_of_images_and_clips_are_shortened_together(qwen3: Zoo) -> None:
    inputs = image_and_clip(qwen3)
    full = given_to_the_language_model(qwen3, inputs)
    with foveate.prune(qwen3.model, "divprune", keep=0.4) as pruning:
        short = given_to_the_language_model(qwen3, inputs)
        image, clip = pruning.report().images
    assert (image.modality, clip.modality) == ("image", "video")
    kept = torch.cat([image.kept, clip.kept])
    assert int(short["visual_pos_masks"].sum()) == int(kept.sum()) == image.tokens + clip.tokens
    for before, after in zip(full["deepstack_visual_embeds"], short["deepstack_visual_embeds"], strict=True):
        assert torch.equal(after, before[kept])
    # The mask points at the embeddings that the rows belong to.
    embeds = full["inputs_embeds"][full["visual_pos_masks"]][kept]
    assert torch.equal(short["inputs_embeds"][short["visual_pos_masks"]], embeds)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("before", [False, True])
def test_pruning_among_the_deepstack_layers(qwen3: Zoo, layer: int, before: bool) -> None:
    """A padded batch equals its prompts one by one, and a cache changes nothing, whichever rows are still to come."""
    late = AtLayer(foveate.get_method("divprune"), layer)
    method, keep = (["random", late], [0.8, 0.4]) if before else (late, 0.4)
    both = pair(qwen3)
    one = zoo_module.inputs(qwen3, [[zoo_module.picture(56, 168, 3)]], TEXTS[1:])
    with foveate.prune(qwen3.model, method, keep=keep):
        cached = generate(qwen3, both)
        assert gap(cached, generate(qwen3, both, use_cache=False)) < 2e-5
        if not before:  # random draws anew for another batch
            alone = generate(qwen3, one)
            gaps = [float((x[1] - y[0]).abs().max()) for x, y in zip(cached.logits, alone.logits, strict=True)]
            assert max(gaps) < 2e-5
    assert gap(cached, generate(qwen3, both)) > 1e-3


def test_rows_of_tokens_that_stay_are_added_as_the_model_adds_them(qwen3: Zoo) -> None:
    inputs = single(qwen3)
    count = int(inputs["image_grid_thw"].prod()) // 4
    plain = logits(qwen3, inputs)
    with foveate.prune(qwen3.model, AtLayer(foveate.get_method("divprune"), 1), keep=count):
        assert torch.equal(logits(qwen3, inputs), plain)
