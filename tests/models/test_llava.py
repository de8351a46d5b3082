"""What the LLaVA adapter supplies, against transformers' own outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

import foveate
import tiny_models as zoo
from foveate.models import adapter_of
from foveate.models.llava import border
from foveate.tokens import Cue, Grid
from runtime.helpers import kernels
from tiny_models import Zoo

from .attention_spy import Spy, shown


def two_images(llava: Zoo) -> dict[str, torch.Tensor]:
    return zoo.inputs(llava, [[zoo.picture(seed=1)], [zoo.picture(seed=2)]])


def vision_outputs(model: Any, pixels: torch.Tensor) -> Any:
    with kernels(model, "eager"), torch.no_grad():
        return model.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)


def test_the_cues_are_the_cls_row_and_the_features_of_the_chosen_layer(llava: Zoo) -> None:
    inputs = two_images(llava)
    tokens = shown(llava.model, inputs)
    outputs = vision_outputs(llava.model, inputs["pixel_values"])
    # hidden_states[-2], LLaVA's feature, is the output of the layer before the last.
    assert torch.allclose(tokens.encoder_attention, outputs.attentions[-2][:, :, 0, 1:].mean(1), atol=1e-6)
    assert torch.allclose(tokens.encoder_features, outputs.hidden_states[-2][:, 1:], atol=1e-5)
    assert [[(g.rows, g.columns) for g in pool] for pool in tokens.grids] == [[(4, 4)], [(4, 4)]]


def test_features_are_what_the_llm_would_read(llava: Zoo) -> None:
    inputs = two_images(llava)
    tokens = shown(llava.model, inputs)
    with torch.no_grad():
        read = llava.model.model.get_image_features(inputs["pixel_values"]).pooler_output
    assert torch.equal(tokens.features, torch.stack(list(read)))


@pytest.mark.parametrize("layer", [-1, -2, 1, [-2, -1]])
def test_any_feature_layer(llava: Zoo, layer: int | list[int]) -> None:
    config = tf.LlavaConfig(**{**llava.model.config.to_dict(), "vision_feature_layer": layer})
    model = tf.LlavaForConditionalGeneration(config).eval()
    inputs = two_images(llava)
    tokens = shown(model, inputs)
    deepest = layer if isinstance(layer, int) else max(layer)
    index = deepest - 1 if deepest > 0 else deepest
    attention = vision_outputs(model, inputs["pixel_values"]).attentions[index][:, :, 0, 1:].mean(1)
    assert torch.allclose(tokens.encoder_attention, attention, atol=1e-6)


def test_a_tower_without_cls_gives_the_attention_received(llava: Zoo) -> None:
    vision = tf.SiglipVisionConfig(
        image_size=56, patch_size=14, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    config = tf.LlavaConfig(
        vision_config=vision,
        text_config=llava.model.config.text_config,
        image_token_id=llava.model.config.image_token_id,
        image_seq_length=16,
        vision_feature_select_strategy="full",
    )
    model = tf.LlavaForConditionalGeneration(config).eval()
    inputs = two_images(llava)
    tokens = shown(model, inputs)
    received = vision_outputs(model, inputs["pixel_values"]).attentions[-2].mean((1, 2))
    assert torch.allclose(tokens.encoder_attention, received, atol=1e-6)


def test_variants_that_have_no_grid_are_refused(llava: Zoo) -> None:
    config = tf.LlavaConfig(**{**llava.model.config.to_dict(), "vision_feature_select_strategy": "full"})
    with pytest.raises(foveate.ModelError, match="set it to 'default'"):
        foveate.attach(tf.LlavaForConditionalGeneration(config), "random")


def test_costs_count_the_cls_token(llava: Zoo) -> None:
    adapter = adapter_of(llava.model)
    assert adapter.patches(foveate.Grid(4, 4)) == 17
    assert adapter.vision_attention_pairs(foveate.Grid(4, 4)) == [17**2] * 3


@pytest.mark.parametrize(
    ("height", "width", "lost"), [(112, 224, 1), (224, 112, 1), (60, 224, 1), (20, 224, 1), (218, 224, 0), (50, 50, 0)]
)
def test_the_border_that_makes_a_picture_square(height: int, width: int, lost: int) -> None:
    """By the sizes: patches of 14 pixels, at 56 for the longer side, with nothing but border in them."""
    size = {"height": 56, "width": 56}
    process = tf.models.llava.image_processing_pil_llava.LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 56}, crop_size=size
    )
    pixels = process(images=[zoo.picture(height, width)], return_tensors="pt")["pixel_values"]
    for values in (pixels, pixels.bfloat16()):
        found = border(values[0], Grid(4, 4)).view(4, 4)
        rows = torch.zeros(4, 4, dtype=torch.bool)
        rows[[0, 3]] = bool(lost)
        assert torch.equal(found, rows if height <= width else rows.T)


def test_a_grey_image_is_no_border(llava: Zoo) -> None:
    assert not border(torch.zeros(3, 56, 56), Grid(4, 4)).any()
    dot = torch.zeros(3, 56, 56)
    dot[:, 30, 20] = 1
    assert (~border(dot, Grid(4, 4))).nonzero()[:, 0].tolist() == [9]


def test_methods_are_shown_the_border(llava: Zoo) -> None:
    inputs = two_images(llava)
    inputs["pixel_values"][1, :, :, :16] = 0.0
    spy = Spy(wants=frozenset({Cue.PADDING}))
    with foveate.prune(llava.model, spy, keep=0.5), torch.no_grad():
        llava.model(**inputs)
    assert spy.seen[0].padding[0].sum() == 0
    assert spy.seen[0].padding[1].nonzero()[:, 0].tolist() == [0, 4, 8, 12]
