"""What the InternVL adapter supplies, against transformers' own outputs."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

import foveate
import tiny_models as zoo
from foveate.models import adapter_of
from tiny_models import Zoo

from .attention_spy import shown, vision_outputs


@pytest.fixture
def internvl() -> Zoo:
    return zoo.internvl()


def two_by_two(patches: torch.Tensor) -> torch.Tensor:
    """Means over 2 x 2 blocks of an 8 x 8 map (B, 64, e), by average pooling, in raster order."""
    square = patches.mT.reshape(len(patches), -1, 8, 8)
    return torch.nn.functional.avg_pool2d(square, 2).flatten(2).mT


@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_the_cues_are_means_over_the_patches_of_a_token(internvl: Zoo, layer: int) -> None:
    config = tf.InternVLConfig(**{**internvl.model.config.to_dict(), "vision_feature_layer": layer})
    model = tf.InternVLForConditionalGeneration(config).eval()
    model.load_state_dict(internvl.model.state_dict())
    inputs = zoo.inputs(internvl, [[zoo.picture(seed=1)], [zoo.picture(seed=2)]])
    tokens = shown(model, inputs)
    outputs = vision_outputs(model, inputs["pixel_values"])
    attention = outputs.attentions[layer - 1 if layer > 0 else layer][:, :, 0, 1:].mean(1)
    assert torch.allclose(tokens.encoder_attention, two_by_two(attention[..., None])[..., 0], atol=1e-6)
    # Layer -1 is read after the tower's last norm, where it has one.
    features = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
    assert torch.allclose(tokens.encoder_features, two_by_two(features[:, 1:]), atol=1e-5)
    assert [[(g.rows, g.columns) for g in pool] for pool in tokens.grids] == [[(4, 4)], [(4, 4)]]
    with torch.no_grad():
        read = model.model.get_image_features(
            inputs["pixel_values"], vision_feature_layer=layer, vision_feature_select_strategy="default"
        )
    assert torch.equal(tokens.features, read.pooler_output)


def test_tokens_are_in_raster_order(internvl: Zoo) -> None:
    """Painting the cell in row 1, column 3 moves the features of that token most, before the projector and after it."""
    inputs = zoo.inputs(internvl, [[zoo.picture(112, 112)]])
    painted = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    painted["pixel_values"][..., 28:56, 84:112] = 3.0
    a, b = shown(internvl.model, inputs), shown(internvl.model, painted)
    for name in ("features", "encoder_features"):
        moved = (getattr(a, name) - getattr(b, name))[0].norm(dim=-1)
        assert int(moved.argmax()) == 1 * 4 + 3


def test_each_tile_has_a_budget_and_a_prompt_may_share_one(internvl: Zoo) -> None:
    """One picture of three tiles, as the processor writes it: one run of placeholders, three rows of pixels."""
    tiles = zoo.inputs(internvl, [[zoo.picture(112, 112, seed) for seed in range(3)]])["pixel_values"]
    words = internvl.processor.tokenize(["<s><img>" + "<IMG_CONTEXT>" * 48 + "</img>what is it?"])
    inputs = {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"], "pixel_values": tiles}
    for scope, counts in (("image", {4}), ("prompt", None)):
        with foveate.prune(internvl.model, "divprune", keep=0.25, scope=scope) as pruning, torch.no_grad():
            internvl.model(**inputs)
            report = pruning.report()
        assert len(report.images) == 3 and report.tokens == 12
        assert counts is None or {image.tokens for image in report.images} == counts


def test_a_cls_token_among_the_visual_tokens_is_refused(internvl: Zoo) -> None:
    config = tf.InternVLConfig(**{**internvl.model.config.to_dict(), "vision_feature_select_strategy": "full"})
    with pytest.raises(foveate.ModelError, match="set it to 'default'"):
        foveate.attach(tf.InternVLForConditionalGeneration(config), "random")


def test_costs_count_the_cls_token(internvl: Zoo) -> None:
    adapter = adapter_of(internvl.model)
    assert adapter.patches(foveate.Grid(4, 4)) == 65
    assert adapter.vision_attention_pairs(foveate.Grid(4, 4)) == [65**2] * 3
