"""Molmo 2: pictures in small and in crops, clips, patches pooled by attention, and images that all see each other."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

import foveate
import tiny_families
import tiny_models
from foveate.methods import get_method
from foveate.models import adapter_of
from foveate.runtime.compat import cache_of_output
from foveate.tokens import EncoderReading
from runtime.helpers import TEXTS, cached, gap, generate, kernels, logits, torch_flops
from tiny_models import Zoo

from .attention_spy import shown, vision_outputs

pytestmark = pytest.mark.skipif(not tiny_families._MOLMO2, reason="this release of transformers has no Molmo 2")
INSIDE = foveate.AtLayer(get_method("divprune"), 2)
CROP = 25  # patches


@pytest.fixture
def z() -> Zoo:
    return tiny_families.molmo2()


def two_images(z: Zoo) -> dict[str, torch.Tensor]:
    return tiny_models.inputs(z, [[tiny_models.picture(84, 112, 0), tiny_models.picture(56, 84, 4)]], TEXTS[:1])


def clip(z: Zoo, frames: int = 3) -> dict[str, torch.Tensor]:
    """A prompt with a clip of 2 x 2 tokens a frame, each of up to 3 x 3 patches, as the processor pools them."""
    ids = z.tokenizer.convert_tokens_to_ids
    frame = [ids("<frame_start>"), *[z.visual_ids[0]] * 4, ids("<frame_end>")]
    row = [1, *(token for time in range(frames) for token in (20 + time, *frame)), 30, 31, 32]
    places = torch.nn.functional.pad(torch.arange(CROP).view(5, 5), (0, 1, 0, 1), value=-1)
    windows = places.unfold(0, 3, 3).unfold(1, 3, 3).flatten(0, 1).flatten(1)
    pooling = torch.cat([torch.where(windows < 0, -1, windows + CROP * index) for index in range(frames)])
    return {
        "input_ids": torch.tensor([row]),
        "attention_mask": torch.ones(1, len(row), dtype=torch.long),
        "mm_token_type_ids": torch.tensor([[int(token in frame) for token in row]]),
        "pixel_values_videos": torch.randn(frames, CROP, 588, generator=torch.Generator().manual_seed(0)),
        "video_token_pooling": pooling,
        "video_grids": torch.tensor([[frames, 2, 2]]),
    }


def test_a_picture_is_two_grids(z: Zoo) -> None:
    with foveate.prune(z.model, "divprune", keep=0.5) as pruning:
        logits(z, two_images(z))
        images = pruning.report().images
    assert [(image.grid.rows, image.grid.columns) for image in images] == [(3, 3), (4, 4), (3, 3), (3, 4)]
    assert [image.tokens for image in images] == [foveate.Budget(0.5).count(n) for n in (9, 16, 9, 12)]


def test_a_clip_is_one_image_and_is_pruned_rightly(z: Zoo) -> None:
    inputs = clip(z)
    report = foveate.check(z.model, inputs, ["evs", "vispruner"])
    assert report.passed, report.checks
    assert set(report.methods.values()) == {None}
    with foveate.prune(z.model, "divprune", keep=0.5) as pruning:
        logits(z, inputs)
        (image,) = pruning.report().images
    assert (image.modality, image.grid.frames, image.tokens_before, image.tokens) == ("video", 3, 12, 6)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_equals_the_model_on_a_prompt_of_survivors(z: Zoo, bidirectional: bool) -> None:
    """transformers makes the masks of a prompt of embeddings that says of each survivor what it is."""
    inputs, base = two_images(z), z.model.model
    if not bidirectional:
        inputs["mm_token_type_ids"] = torch.zeros_like(inputs["mm_token_type_ids"])
    with foveate.prune(z.model, "divprune", keep=0.4) as pruning:
        pruned = logits(z, inputs)
        kept = torch.cat([image.kept for image in pruning.report().images])
    places = inputs["input_ids"][0] == z.visual_ids[0]
    stays = torch.ones_like(places)
    stays[places.nonzero()[~kept, 0]] = False
    media = [inputs[name] for name in ("pixel_values", "image_token_pooling", "image_grids")]
    with torch.no_grad():
        embeds = base.get_input_embeddings()(inputs["input_ids"])
        embeds[0, places] += torch.cat(base.get_image_features(*media).pooler_output)
        shortened = z.model(
            inputs_embeds=embeds[:, stays],
            attention_mask=inputs["attention_mask"][:, stays],
            mm_token_type_ids=inputs["mm_token_type_ids"][:, stays],
            position_ids=stays.nonzero().T,
        ).logits
    assert torch.allclose(pruned, shortened, atol=2e-5)
    other = {**inputs, "mm_token_type_ids": torch.full_like(inputs["mm_token_type_ids"], 0) + int(not bidirectional)}
    with foveate.prune(z.model, "divprune", keep=0.4):
        assert not torch.allclose(logits(z, other), pruned, atol=1e-3)


@pytest.mark.parametrize("method", ["divprune", INSIDE], ids=str)
def test_kernels_and_static_caches_agree(z: Zoo, method: Any) -> None:
    inputs = two_images(z)
    with foveate.prune(z.model, method, keep=0.4):
        plain = generate(z, inputs)
        assert gap(plain, generate(z, inputs, cache_implementation="static")) < 2e-5
        with kernels(z.model, "eager"):
            assert gap(plain, generate(z, inputs)) < 2e-5


def test_a_picture_in_a_later_turn(z: Zoo) -> None:
    """Its tokens see each other, wherever earlier ones have gone, as in the model on what is left of both turns."""
    both, base = two_images(z), z.model.model
    ids, names = both["input_ids"], ("attention_mask", "mm_token_type_ids")
    second = int((ids[0] == z.tokenizer.convert_tokens_to_ids("<low_res_im_start>")).nonzero()[1, 0])
    turns = [slice(None, second), slice(second, None)]
    media = [
        z.processor.image_processor([tiny_models.picture(*size)], return_tensors="pt")
        for size in ((84, 112, 0), (56, 84, 4))
    ]
    for one in media:
        one.pop("image_num_crops")
    pruned, masks, cache = [], [], None
    with foveate.prune(z.model, "divprune", keep=0.5) as pruning, torch.no_grad():
        for turn, shown_now in zip(turns, media, strict=True):
            rest = {name: both[name][:, : turn.stop] for name in names}
            held = {"use_cache": True} if cache is None else cached(cache)
            out = z.model(input_ids=ids[:, turn], **rest, **shown_now, **held)
            cache = cache_of_output(out)
            pruned.append(out.logits)
            masks.append(torch.cat([image.kept for image in pruning.report().images]))
    places = ids[0] == z.visual_ids[0]
    stays = ~places
    stays[places] = torch.cat(masks)
    cache = None
    for turn, shown_now, kept, expected in zip(turns, media, masks, pruned, strict=True):
        left = stays.nonzero()[:, 0]
        left = left[(left >= (turn.start or 0)) & (left < (turn.stop or len(stays)))]
        with torch.no_grad():
            features = torch.cat(base.get_image_features(**shown_now).pooler_output)[kept]
            out = z.model(
                input_ids=ids[:, left],
                **{name: both[name][:, : turn.stop][:, stays[: turn.stop]] for name in names},
                position_ids=left[None],
                mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=(features,))},
                **({"use_cache": True} if cache is None else cached(cache)),
            )
        cache = cache_of_output(out)
        assert out.logits.shape == expected.shape
        assert torch.allclose(out.logits, expected, atol=2e-5)


def test_cues_are_means_over_the_patches_that_are_pooled(z: Zoo) -> None:
    """Of attention received in the deepest layer that gives features, and of the features of both layers."""
    for inputs, names in ((two_images(z), ("pixel_values", "image")), (clip(z), ("pixel_values_videos", "video"))):
        tokens = shown(z.model, inputs, EncoderReading(0.0, "cls"))
        outputs = vision_outputs(z.model, inputs[names[0]])
        pooling = inputs[f"{names[1]}_token_pooling"]
        features = torch.cat([outputs.hidden_states[-1], outputs.hidden_states[1]], -1).flatten(0, 1)
        received = [outputs.attentions[layer].mean((1, 2)).flatten() for layer in (-1, 0)]
        rows = [row[row >= 0] for row in pooling]
        valid = tokens.valid
        assert torch.allclose(
            tokens.encoder_features[valid], torch.stack([features[row].mean(0) for row in rows]), atol=1e-5
        )
        expected = [torch.stack([values[row].mean() for row in rows]) for values in received]
        assert torch.allclose(tokens.encoder_attention[valid], expected[0], atol=1e-6)
        assert torch.allclose(tokens.encoder_readings[valid][:, 0], expected[1], atol=1e-6)


def test_costs_are_those_that_torch_counts(z: Zoo) -> None:
    for inputs in (two_images(z), clip(z)):
        with foveate.prune(z.model, "divprune", keep=0.4) as pruning:
            counted = torch_flops(z.model, functools.partial(z.model, **inputs, logits_to_keep=1))
            report = pruning.report()
        assert report.text_flops + report.vision_flops == pytest.approx(counted, rel=0.01)


def test_the_encoder_is_read_up_to_the_deepest_layer_that_gives_features(z: Zoo) -> None:
    config = z.model.config.adapter_config
    before = config.vision_feature_layer
    try:
        for layers, deepest in (([-1, 0], 2), ([1, 0], 1), ([-3, -2], 1)):
            config.vision_feature_layer = layers
            assert max(adapter_of(z.model).attention_modules()) == deepest
    finally:
        config.vision_feature_layer = before


def test_grids_without_the_patches_of_tokens_are_refused(z: Zoo) -> None:
    inputs = two_images(z)
    with foveate.prune(z.model, "divprune", keep=0.5), torch.no_grad():
        encoded = z.model.get_image_features(
            inputs.pop("pixel_values"), inputs.pop("image_token_pooling"), inputs["image_grids"]
        )
        with pytest.raises(foveate.ModelError, match="image_grids and image_token_pooling"):
            z.model(**inputs, mm_encoder_outputs={"image": encoded})
