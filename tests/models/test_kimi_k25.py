"""What the Kimi K2.5 adapter supplies, against transformers' own outputs, and what latent attention costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import foveate
import tiny_families
import tiny_models as zoo
from foveate.models import adapter_of
from foveate.models.kimi_k25 import PooledGrid
from foveate.runtime.compat import cache_of_output
from foveate.runtime.cost import CostModel
from foveate.tokens import Grid
from runtime.helpers import kernels, logits, single
from tiny_models import Zoo

from .attention_spy import Spy, shown

GRIDS = [Grid(2, 3), Grid(4, 3)]


@pytest.fixture
def model() -> Zoo:
    return tiny_families.kimi_k25()


def two_images(z: Zoo) -> dict[str, torch.Tensor]:
    return zoo.inputs(z, [[zoo.picture(56, 84, 1)], [zoo.picture(112, 84, 2)]])


def clip_inputs(z: Zoo, frames: int) -> dict[str, torch.Tensor]:
    """Two pieces of a clip, of `frames` frames of 4 x 6 patches each: 6 tokens a piece."""
    piece = f"00:00:00.000<|media_begin|>video<|media_content|>{'<|video|>' * 6}<|media_end|>"
    pixels = torch.randn(2 * frames * 24, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    inputs = z.processor.tokenize([f"<s>{piece * 2}what is it?"])
    del inputs["mm_token_type_ids"]
    return {**inputs, "pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[frames, 4, 6]] * 2)}


def vision_outputs(z: Zoo, pixels: torch.Tensor, grid: torch.Tensor) -> Any:
    with kernels(z.model, "eager"), torch.no_grad():
        return z.model.model.vision_tower(pixels, grid, output_hidden_states=True)


def eager_received(z: Zoo, pixels: torch.Tensor, grid: torch.Tensor) -> list[torch.Tensor]:
    """(P,) for each image: the mean over heads and queries of eager attention in the last layer of the tower."""
    seen: list[torch.Tensor] = []
    module = z.model.model.vision_tower.layers[-1].attn
    eager = transformers.models.kimi_k25.modeling_kimi_k25.eager_attention_forward

    def listening(*args: Any, **kwargs: Any) -> Any:
        output, weights = eager(*args, **kwargs)
        seen.append(weights[0].mean((0, 1)))
        return output, weights

    transformers.AttentionInterface.register("listening", listening)
    held, module.config = module.config, type(module.config)(**module.config.to_dict())
    module.config._attn_implementation = "listening"
    try:
        with torch.no_grad():
            z.model.model.vision_tower(pixels, grid)
    finally:
        module.config = held
    return seen


def two_by_two(patches: torch.Tensor, grid: Grid, frames: int = 1) -> torch.Tensor:
    """(n, e) means over 2 x 2 blocks of patches (P, e) by average pooling, and over frames."""
    images = patches.view(frames, 2 * grid.rows, 2 * grid.columns, -1).permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(images, 2).mean(0).flatten(1).T


def test_the_cues_are_those_of_eager_attention(model: Zoo) -> None:
    inputs = two_images(model)
    tokens = shown(model.model, inputs)
    pixels, shapes = inputs["pixel_values"], inputs["image_grid_thw"]
    assert adapter_of(model.model).grids(inputs) == {"image": GRIDS}
    received = eager_received(model, pixels, shapes)
    hidden = vision_outputs(model, pixels, shapes).last_hidden_state.split([24, 48])
    for image, grid in enumerate(GRIDS):
        n = len(grid)
        expected = two_by_two(received[image][:, None], grid)[:, 0]
        assert torch.allclose(tokens.encoder_attention[image, :n], expected, atol=1e-6)
        assert torch.allclose(tokens.encoder_features[image, :n], two_by_two(hidden[image], grid), atol=1e-5)


def test_features_are_what_the_llm_would_read(model: Zoo) -> None:
    inputs = two_images(model)
    tokens = shown(model.model, inputs)
    with torch.no_grad():
        read = model.model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    for image, expected in enumerate(read):
        assert torch.equal(tokens.features[image, : len(expected)], expected)


@pytest.mark.parametrize("frames", [1, 3])
def test_clips(model: Zoo, frames: int) -> None:
    """Each piece of a clip has the tokens of one frame, averages over all of its frames."""
    inputs, spy = clip_inputs(model, frames), Spy()
    try:
        logits(model, inputs)
    except RuntimeError as error:
        if frames == 1:
            raise
        pytest.skip(f"this release of transformers fails on clips of several frames a piece: {error}")
    with foveate.prune(model.model, spy, keep=0.5) as pruning:
        assert logits(model, inputs).isfinite().all()
        report = pruning.report()
    grid = Grid(2, 3) if frames == 1 else PooledGrid(2, 3, pooled=frames)
    assert [image.grid for image in report.images] == [grid] * 2
    assert (report.tokens, report.tokens_before) == (6, 12)
    pixels, shapes = inputs["pixel_values_videos"], inputs["video_grid_thw"]
    hidden = vision_outputs(model, pixels, shapes).last_hidden_state.split(frames * 24)
    for piece, received in enumerate(eager_received(model, pixels, shapes)):
        expected = two_by_two(received[:, None], grid, frames)[:, 0]
        assert torch.allclose(spy.seen[0].encoder_attention[piece], expected, atol=1e-6)
        features = two_by_two(hidden[piece], grid, frames)
        assert torch.allclose(spy.seen[0].encoder_features[piece], features, atol=1e-5)


def test_costs_count_the_patches_of_all_frames(model: Zoo) -> None:
    adapter = adapter_of(model.model)
    assert adapter.patches(Grid(2, 3)) == 24
    assert adapter.patches(PooledGrid(2, 3, pooled=3)) == 72
    assert adapter.vision_attention_pairs(PooledGrid(2, 3, pooled=3)) == [72**2] * 3


def test_the_row_is_that_of_eager_attention(model: Zoo) -> None:
    inputs = single(model)
    with kernels(model.model, "eager"), torch.no_grad():
        row = model.model(**inputs, output_attentions=True).attentions[1][0, :, -1].mean(0)
    visual = inputs["input_ids"][0] == model.visual_ids[0]
    with foveate.prune(model.model, "fastv", keep=0.5, layer=2) as pruning:
        logits(model, inputs)
        kept = pruning.report().images[0].kept
    assert sorted(row[visual].topk(int(kept.sum())).indices.tolist()) == kept.nonzero()[:, 0].tolist()


def test_the_memory_is_that_of_the_latents(model: Zoo) -> None:
    inputs = single(model)

    def held(cache: Any) -> int:
        parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]
        return sum(part.numel() * part.element_size() for part in parts)

    with torch.no_grad():
        plain = held(cache_of_output(model.model(**inputs, use_cache=True)))
        with foveate.prune(model.model, "fastv", keep=0.4) as pruning:
            pruned = held(cache_of_output(model.model(**inputs, use_cache=True)))
            report = pruning.report()
    assert (report.kv_bytes_before, report.kv_bytes) == (plain, pruned)
    assert pruned < plain


def test_latent_attention_costs_its_own_widths(model: Zoo) -> None:
    """A pair costs a product of 4 heads with keys of 16 + 8 channels, and one with values of 16."""
    cost = CostModel(adapter_of(model.model))

    def square(tokens: int) -> float:  # what grows with the pairs
        once, twice = ([[n] if layer == 0 else [0] for layer in range(4)] for n in (tokens, 2 * tokens))
        return (cost.text_flops(twice) - 2 * cost.text_flops(once) + cost.text_flops([[0]] * 4)) / 2

    assert square(10) == 2 * 4 * (16 + 8 + 16) * 10**2
