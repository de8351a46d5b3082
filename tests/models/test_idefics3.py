"""What the adapters of Idefics3 and SmolVLM supply, against transformers' own outputs."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import foveate
import tiny_families
import tiny_models as zoo
from foveate.models import adapter_of
from foveate.tokens import Cue, Grid
from runtime.helpers import kernels
from tiny_models import Zoo

from .attention_spy import Spy, shown


@pytest.fixture(params=[tiny_families.idefics3, tiny_families.smolvlm], ids=["idefics3", "smolvlm"])
def model(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


def ragged(z: Zoo) -> dict[str, torch.Tensor]:
    """Prompts of one picture and of two: the batch of pictures is filled up with zeros."""
    return zoo.inputs(z, [[zoo.picture(100, 56, 1)], [zoo.picture(50, 50, 2), zoo.picture(112, 112, 3)]])


def tiles(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(n, 3, H, W): the pictures that are no filling."""
    pixels = inputs["pixel_values"].flatten(0, 1)
    return pixels[pixels.flatten(1).abs().sum(1) > 0]


def vision_outputs(z: Zoo, pixels: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
    with kernels(z.model, "eager"), torch.no_grad():
        return z.model.model.vision_model(pixels, mask, output_attentions=True)


def two_by_two(patches: torch.Tensor) -> torch.Tensor:
    """(B, 16, e) means over 2 x 2 blocks of an 8 x 8 map (B, 64, e), by average pooling, in raster order."""
    return torch.nn.functional.avg_pool2d(patches.mT.reshape(len(patches), -1, 8, 8), 2).flatten(2).mT


def test_each_tile_is_an_image(model: Zoo) -> None:
    inputs = ragged(model)
    grids = adapter_of(model.model).grids(inputs)["image"]
    # 100 x 56 px are two tiles and the whole, 50 x 50 one tile, 112 x 112 four and the whole.
    assert grids == [Grid(4, 4)] * (9 if model.name == "idefics3" else 3)
    assert adapter_of(model.model).grids({"pixel_values": tiles(inputs)})["image"] == grids
    assert int((inputs["input_ids"] == model.visual_ids[0]).sum()) == 16 * len(grids)


def test_the_cues_are_those_of_eager_attention(model: Zoo) -> None:
    inputs = ragged(model)
    tokens = shown(model.model, inputs)
    outputs = vision_outputs(model, tiles(inputs))
    received = two_by_two(outputs.attentions[-1].mean((1, 2))[..., None])[..., 0]
    assert torch.allclose(tokens.encoder_attention, received, atol=1e-6)
    assert torch.allclose(tokens.encoder_features, two_by_two(outputs.last_hidden_state), atol=1e-5)


def test_features_are_what_the_llm_would_read(model: Zoo) -> None:
    inputs = ragged(model)
    tokens = shown(model.model, inputs)
    with torch.no_grad():
        read = model.model.model.get_image_features(inputs["pixel_values"]).pooler_output
    assert torch.equal(tokens.features.flatten(0, 1), torch.cat([part.reshape(-1, part.shape[-1]) for part in read]))


def test_pixels_that_are_left_out_are_padding_and_give_no_attention(model: Zoo) -> None:
    """A tile of which the lower 3 rows of patches are masked: the last row of tokens, and half of the one above."""
    inputs = zoo.inputs(model, [[zoo.picture(50, 50, 2)]])
    mask = torch.ones(1, 1, 56, 56, dtype=torch.long)
    mask[..., 35:, :] = 0
    spy = Spy(wants=frozenset({Cue.PADDING, Cue.ENCODER_ATTENTION}))
    with foveate.prune(model.model, spy, keep=0.5), torch.no_grad():
        model.model(**inputs, pixel_attention_mask=mask)
    assert spy.seen[0].padding[0].nonzero()[:, 0].tolist() == [12, 13, 14, 15]
    patches = mask[0, :, ::7, ::7].bool()
    attention = vision_outputs(model, tiles(inputs), patches).attentions[-1][0]
    received = torch.zeros(64)
    received[:40] = attention[:, :40, :40].mean((0, 1))
    assert torch.allclose(spy.seen[0].encoder_attention[0], two_by_two(received[None, :, None])[0, :, 0], atol=1e-6)


def test_the_text_between_tiles_is_that_of_the_processor(model: Zoo) -> None:
    name = type(model.model).__name__.removesuffix("ForConditionalGeneration")
    module = importlib.import_module(f"transformers.models.{model.name}.processing_{model.name}")
    processor = object.__new__(getattr(module, f"{name}Processor"))
    if not hasattr(processor, "replace_image_token"):
        pytest.skip("this release of transformers writes the text elsewhere")
    processor.fake_image_token, processor.image_token, processor.image_seq_len = "F", "I", 16
    processor.global_image_tag = processor.global_image_token = "G"
    short = {"<fake_token_around_image>": "F", "<global-img>": "G", "<image>": "I"}
    for rows, columns in [(0, 0), (1, 2), (2, 1), (2, 2)]:
        (made,) = model.processor.layout({"grids": [(rows, columns)]})
        for token, letter in short.items():
            made = made.replace(token, letter)
        assert processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0) == made


def test_costs_count_patches(model: Zoo) -> None:
    adapter = adapter_of(model.model)
    assert adapter.patches(Grid(4, 4)) == 64
    assert adapter.vision_attention_pairs(Grid(4, 4)) == [64**2] * 3
