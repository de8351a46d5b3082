"""What the Ovis2 adapter supplies, against transformers' own outputs; indicator tokens."""

from __future__ import annotations

import pytest
import torch

import foveate
import tiny_families
import tiny_models as zoo
from foveate.models import adapter_of
from runtime.helpers import kernels, logits
from tiny_models import Zoo

from .attention_spy import shown


@pytest.fixture
def ovis() -> Zoo:
    return tiny_families.ovis2()


def test_the_cues_are_means_over_the_patches_of_a_token(ovis: Zoo) -> None:
    inputs = zoo.inputs(ovis, [[zoo.picture(seed=1)], [zoo.picture(seed=2)]])
    tokens = shown(ovis.model, inputs)
    tower = ovis.model.model.vision_tower
    with kernels(ovis.model, "eager"), torch.no_grad():
        outputs = tower(inputs["pixel_values"], output_attentions=True)
        patches = tower.transformer(inputs["pixel_values"]).last_hidden_state
        after = ovis.model.model.get_image_features(inputs["pixel_values"]).pooler_output
    received = outputs.attentions[-1].mean((1, 2)).view(2, 1, 6, 6)
    square = patches.mT.reshape(2, 32, 6, 6)
    pool = torch.nn.functional.avg_pool2d
    assert torch.allclose(tokens.encoder_attention, pool(received, 2).flatten(1), atol=1e-6)
    assert torch.allclose(tokens.encoder_features, pool(square, 2).flatten(2).mT, atol=1e-5)
    assert torch.allclose(tokens.features, after, atol=1e-6)
    assert [[(grid.rows, grid.columns) for grid in pool] for pool in tokens.grids] == [[(3, 3)], [(3, 3)]]


def test_indicators_of_rows_and_columns_stay(ovis: Zoo) -> None:
    """A picture of two tiles beside each other and its thumbnail, as the processor writes it."""
    tile = "<IMG_ATOM>" * 9
    prompt = f"<s><IMG_START>{tile}<IMG_GRID>{tile}<IMG_COL>{tile}<IMG_END>what is it?"
    tiles = zoo.inputs(ovis, [[zoo.picture(seed=seed) for seed in range(3)]])["pixel_values"]
    words = ovis.processor.tokenize([prompt])
    inputs = {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"], "pixel_values": tiles}
    with foveate.prune(ovis.model, "divprune", keep=0.34) as pruning:
        shortened = logits(ovis, inputs)
        report = pruning.report()
    assert [image.tokens for image in report.images] == [3, 3, 3]
    assert shortened.shape[1] == inputs["input_ids"].shape[1] - 18
    assert foveate.check(ovis.model, inputs, []).passed


def test_costs_count_the_table_of_visual_words(ovis: Zoo) -> None:
    adapter = adapter_of(ovis.model)
    assert adapter.token_products == 29 * 64
    assert adapter.patches(foveate.Grid(3, 3)) == 36
    assert adapter.vision_attention_pairs(foveate.Grid(3, 3)) == [36**2] * 2
