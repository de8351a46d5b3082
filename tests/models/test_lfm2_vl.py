"""What the LFM2-VL adapter supplies, against transformers' own outputs, and its layers that convolve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.lfm2_vl import processing_lfm2_vl

import foveate
import tiny_families
import tiny_models as zoo
from foveate.errors import RuntimeStateError
from foveate.methods import get_method
from foveate.models import adapter_of
from foveate.runtime.compat import cache_of_output
from foveate.runtime.cost import CostModel, linear_weights
from foveate.tokens import Grid
from runtime.helpers import cache_bytes, cached, generate, kernels, logits, single
from tiny_models import Zoo

from .attention_spy import shown

EARLY = foveate.AtLayer(get_method("divprune"), 1)  # before the first layer with attention


@pytest.fixture
def model() -> Zoo:
    return tiny_families.lfm2_vl()


def two_images(z: Zoo) -> dict[str, torch.Tensor]:
    return zoo.inputs(z, [[zoo.picture(56, 84, 1)], [zoo.picture(112, 84, 2)]])


def vision_outputs(z: Zoo, inputs: dict[str, torch.Tensor]) -> Any:
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    with kernels(z.model, "eager"), torch.no_grad():
        return z.model.model.vision_tower(**{name: inputs[name] for name in names}, output_attentions=True)


def two_by_two(patches: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(n, e) means over 2 x 2 blocks of patches (P, e), by average pooling."""
    image = patches.T.reshape(-1, 2 * grid.rows, 2 * grid.columns)
    return torch.nn.functional.avg_pool2d(image[None], 2)[0].flatten(1).T


def test_the_cues_are_those_of_eager_attention(model: Zoo) -> None:
    """The first image is padded to the size of the second; its padding gives and gets nothing."""
    inputs = two_images(model)
    tokens = shown(model.model, inputs)
    outputs = vision_outputs(model, inputs)
    grids = [Grid(2, 3), Grid(4, 3)]
    assert adapter_of(model.model).grids(inputs) == {"image": grids}
    for image, grid in enumerate(grids):
        n, patches = len(grid), 4 * len(grid)
        received = outputs.attentions[-1][image, :, :patches, :patches].mean((0, 1))
        expected = two_by_two(received[:, None], grid)[:, 0]
        assert torch.allclose(tokens.encoder_attention[image, :n], expected, atol=1e-6)
        features = two_by_two(outputs.last_hidden_state[image, :patches], grid)
        assert torch.allclose(tokens.encoder_features[image, :n], features, atol=1e-5)


def test_features_are_what_the_llm_would_read(model: Zoo) -> None:
    inputs = two_images(model)
    tokens = shown(model.model, inputs)
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    with torch.no_grad():
        read = model.model.model.get_image_features(**{name: inputs[name] for name in names}).pooler_output
    for image, expected in enumerate(read):
        assert torch.equal(tokens.features[image, : len(expected)], expected)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 2)])
def test_grids_count_the_placeholders_of_the_processor(model: Zoo, rows: int, columns: int) -> None:
    """Tiles of 8 x 8 patches, then the whole picture of 4 x 6; what names a tile is text."""
    processor: Any = object.__new__(processing_lfm2_vl.Lfm2VlProcessor)
    if not hasattr(processor, "_build_image_tokens"):
        pytest.skip("this release of transformers writes the text elsewhere")
    processor.image_token, processor.image_start_token, processor.image_end_token = "I", "<", ">"
    processor.image_thumbnail_token = "T"
    tile = processor._compute_tokens_per_tile(8 * 14, 14, 2)
    whole = processor._compute_tokens_for_image([4 * 14, 6 * 14], 14, 2)
    text = processor._build_image_tokens(rows, columns, tile, whole, True, True)
    shapes = [[8, 8]] * (rows * columns if rows * columns > 1 else 0) + [[4, 6]]
    grids = adapter_of(model.model).grids({"spatial_shapes": torch.tensor(shapes)})["image"]
    assert text.count("I") == sum(map(len, grids))
    assert list(map(len, grids)) == [16] * (len(shapes) - 1) + [6]


def test_a_method_moves_to_the_next_layer_that_can_be_read(model: Zoo) -> None:
    """Layers 2, 5 and 7 have attention, and a method reads the one below its own."""
    for asked, expected in [(1, 3), (3, 3), (4, 6)]:
        with foveate.prune(model.model, "fastv", keep=0.5, layer=asked) as pruning:
            assert logits(model, single(model)).isfinite().all()
        assert [stage.layer for stage in pruning.report().stages] == [expected]


def test_the_row_is_that_of_eager_attention(model: Zoo) -> None:
    inputs = single(model)
    with kernels(model.model, "eager"), torch.no_grad():
        row = model.model(**inputs, output_attentions=True).attentions[0][0, :, -1].mean(0)
    visual = inputs["input_ids"][0] == model.visual_ids[0]
    with foveate.prune(model.model, "fastv", keep=0.5, layer=3) as pruning:
        logits(model, inputs)
        kept = pruning.report().images[0].kept
    assert sorted(row[visual].topk(int(kept.sum())).indices.tolist()) == kept.nonzero()[:, 0].tolist()


def test_a_batch_that_would_be_padded_in_the_middle_is_refused(model: Zoo) -> None:
    """A second turn in which one row loses tokens and the other none: padding would enter the first one's state."""
    first = {"input_ids": torch.full((2, 6), 20), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    one = single(model)
    ids = torch.cat([one["input_ids"], torch.full_like(one["input_ids"], 21)])
    turn = {
        **one,
        "input_ids": torch.cat([first["input_ids"], ids], 1),
        "attention_mask": torch.ones(2, 6 + ids.shape[1], dtype=torch.long),
    }
    for method in ("divprune", EARLY):
        with foveate.prune(model.model, method, keep=0.5), torch.no_grad():
            cache = cache_of_output(model.model(**first, use_cache=True))
            with pytest.raises(RuntimeStateError, match="convolution or linear attention cannot skip padding"):
                generate(model, turn, **cached(cache))


@pytest.mark.parametrize("method", ["divprune", EARLY], ids=str)
def test_a_pruned_cache_is_not_rewound(model: Zoo, method: Any) -> None:
    with foveate.prune(model.model, method, keep=0.5), torch.no_grad():
        cache = cache_of_output(model.model(**single(model), use_cache=True))
        with pytest.raises(RuntimeStateError, match="cannot be cropped"):
            cache.crop(4)


def test_the_memory_is_that_of_the_cache(model: Zoo) -> None:
    inputs = single(model)

    with torch.no_grad():
        plain = cache_bytes(cache_of_output(model.model(**inputs, use_cache=True)))
        with foveate.prune(model.model, EARLY, keep=0.4) as pruning:
            pruned = cache_bytes(cache_of_output(model.model(**inputs, use_cache=True)))
            report = pruning.report()
    assert (report.kv_bytes_before, report.kv_bytes) == (plain, pruned)
    assert pruned < plain


def test_layers_that_convolve_cost_in_proportion_to_the_tokens(model: Zoo) -> None:
    adapter = adapter_of(model.model)
    assert adapter.attention_layers == (2, 5, 7)
    cost, nothing = CostModel(adapter), [[0]] * 8

    def of_layer(layer: int, tokens: int) -> float:
        return cost.text_flops([[tokens] if index == layer else [0] for index in range(8)]) - cost.text_flops(nothing)

    assert of_layer(0, 50) == 50 * 2 * linear_weights([adapter.text.layers[0]])
    assert of_layer(2, 50) > 50 * of_layer(2, 1)
