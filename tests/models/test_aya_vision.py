"""Aya Vision, Cohere 2 Vision and VipLlava: cues against transformers' own outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

import foveate
import tiny_families
import tiny_models as zoo
from foveate.models import adapter_of
from runtime.helpers import logits
from tiny_models import Zoo

from .attention_spy import shown, vision_outputs


@pytest.fixture(params=[tiny_families.aya_vision, tiny_families.cohere2_vision], ids=lambda make: make.__name__)
def shuffled(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


def test_cues_are_means_over_the_patches_of_a_token(shuffled: Zoo) -> None:
    """In the order in which the projector itself shuffles them."""
    inputs = zoo.inputs(shuffled, [[zoo.picture(seed=1)], [zoo.picture(seed=2)]])
    tokens = shown(shuffled.model, inputs)
    outputs = vision_outputs(shuffled.model, inputs["pixel_values"])
    shuffle = shuffled.model.model.multi_modal_projector.pixel_shuffle
    received = outputs.attentions[-1].mean((1, 2))
    assert torch.allclose(tokens.encoder_attention, shuffle(received[..., None]).mean(-1).flatten(1), atol=1e-6)
    last = shuffled.name == "cohere2_vision"
    features = outputs.last_hidden_state if last else outputs.hidden_states[-1]
    means = shuffle(features).unflatten(-1, (4, -1)).mean(-2).flatten(1, 2)
    assert torch.allclose(tokens.encoder_features, means, atol=1e-5)
    assert [[(g.rows, g.columns) for g in pool] for pool in tokens.grids] == [[(4, 4)], [(4, 4)]]
    read = shuffled.model.model.get_image_features(inputs["pixel_values"]).pooler_output
    assert torch.equal(tokens.features, read.detach())


def test_tiles_of_a_picture_have_a_budget_each(shuffled: Zoo) -> None:
    """Three tiles behind tokens of text, as the families' processors write them."""
    tile = "a" + "<|IMG_PATCH|>" * 16
    inputs = {
        **shuffled.processor.tokenize(["<s>" + tile * 3 + "what is in"]),
        "pixel_values": torch.randn(3, 3, 112, 112),
    }
    del inputs["mm_token_type_ids"]
    report = foveate.check(shuffled.model, inputs, ["divprune"])
    assert report.passed, report.checks
    with foveate.prune(shuffled.model, "divprune", keep=0.25) as pruning:
        logits(shuffled, inputs)
    assert [image.tokens for image in pruning.report().images] == [4, 4, 4]
    assert adapter_of(shuffled.model).patches(foveate.Grid(4, 4)) == 64


def test_a_tower_with_a_cls_token_is_refused(shuffled: Zoo) -> None:
    vision = {**shuffled.model.config.vision_config.to_dict(), "model_type": "clip_vision_model", "projection_dim": 32}
    config = type(shuffled.model.config)(**{**shuffled.model.config.to_dict(), "vision_config": vision})
    with pytest.raises(foveate.ModelError, match="SigLIP towers are"):
        foveate.prune(type(shuffled.model)(config), "divprune")


def test_an_aya_vision_that_loses_its_first_patch_is_refused() -> None:
    config: Any = tiny_families.aya_vision().model.config
    config = tf.AyaVisionConfig(**{**config.to_dict(), "vision_feature_select_strategy": "default"})
    with pytest.raises(foveate.ModelError, match="set it to 'full'"):
        foveate.prune(tf.AyaVisionForConditionalGeneration(config), "divprune")


def test_joined_features_are_heard_in_the_deepest_layer() -> None:
    """VipLlava joins the features of layers in any order."""
    vip = tiny_families.vipllava()
    assert list(vip.model.config.vision_feature_layers) == [-2, 1]  # of three: hidden states 2 and 1
    inputs = zoo.inputs(vip, [[zoo.picture(seed=1)], [zoo.picture(seed=2)]])
    tokens = shown(vip.model, inputs)
    outputs = vision_outputs(vip.model, inputs["pixel_values"])
    assert torch.allclose(tokens.encoder_attention, outputs.attentions[1][:, :, 0, 1:].mean(1), atol=1e-6)
    joined = torch.cat([outputs.hidden_states[index][:, 1:] for index in (-2, 1)], -1)
    assert torch.allclose(tokens.encoder_features, joined, atol=1e-5)


def test_a_vipllava_without_cls_token_is_refused() -> None:
    config: Any = tiny_families.vipllava().model.config
    config = tf.VipLlavaConfig(**{**config.to_dict(), "vision_config": tiny_families._siglip(56)})
    with pytest.raises(foveate.ModelError, match="CLIP towers have one"):
        foveate.prune(tf.VipLlavaForConditionalGeneration(config), "divprune")
