"""What the ERNIE 4.5 VL adapter supplies, and kinds of tokens that are shortened with the tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
import tiny_families
import tiny_models as zoo
from foveate.methods import get_method
from foveate.models import adapter_of
from runtime.helpers import gap, generate, kernels, logits
from tiny_models import Zoo

from .attention_spy import shown
from .qwen_helpers import most_moved_by_painting

METHODS: list[Any] = ["divprune", foveate.AtLayer(get_method("divprune"), 2)]


@pytest.fixture
def ernie() -> Zoo:
    return tiny_families.ernie4_5_vl_moe()


def with_kinds(z: Zoo, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the kinds of tokens by which experts are chosen: those around an image count as visual, too."""
    ids, config = inputs["input_ids"], z.model.config
    around = torch.tensor([config.image_start_token_id, config.image_end_token_id])
    return {**inputs, "moe_mm_token_type_ids": inputs["mm_token_type_ids"] | torch.isin(ids, around).long()}


def clip(z: Zoo, frames: int = 4) -> dict[str, torch.Tensor]:
    pixels = torch.randn(frames * 24, 3 * 14 * 14, generator=torch.Generator().manual_seed(0))
    placeholders = "<|VIDEO_PLACEHOLDER|>" * (6 * frames // 2)
    words = z.processor.tokenize([f"<s><|IMAGE_START|>{placeholders}<|IMAGE_END|>what is in the picture?"])
    return {**words, "pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[frames, 4, 6]])}


def test_visual_tokens_keep_experts_of_their_own(ernie: Zoo) -> None:
    inputs = with_kinds(ernie, zoo.inputs(ernie, [[zoo.picture(84, 112, 0), zoo.picture(56, 84, 1)]]))
    without = {name: value for name, value in inputs.items() if not name.startswith("moe")}
    assert not torch.allclose(logits(ernie, inputs), logits(ernie, without), atol=1e-2)
    report = foveate.check(ernie.model, inputs, [])
    assert report.passed, report.checks


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_ragged_batches_with_kinds_of_tokens(ernie: Zoo, method: Any) -> None:
    pictures = [zoo.picture(84, 112, 0)], [zoo.picture(84, 112, 3), zoo.picture(56, 84, 4)]
    both = with_kinds(ernie, zoo.inputs(ernie, pictures))
    alone = with_kinds(ernie, zoo.inputs(ernie, pictures[:1]))
    with foveate.prune(ernie.model, method, keep=0.4):
        padded, single = logits(ernie, both), logits(ernie, alone)
    assert torch.allclose(padded[0, -1], single[0, -1], atol=1e-4)


def test_a_token_of_a_clip_stands_for_two_frames(ernie: Zoo) -> None:
    inputs = with_kinds(ernie, clip(ernie))
    tokens = shown(ernie.model, inputs)
    (grid,) = tokens.grids[0]
    assert (grid.frames, grid.rows, grid.columns) == (2, 2, 3)
    tower = ernie.model.model.vision_tower
    with kernels(ernie.model, "eager"), torch.no_grad():
        outputs = tower(inputs["pixel_values_videos"], inputs["video_grid_thw"], output_attentions=True)
    features = outputs.last_hidden_state.view(2, 2, 6, 4, 32).mean((1, 3)).flatten(0, 1)  # pair, frame, token, patch
    assert torch.allclose(tokens.encoder_features[0], features, atol=1e-5)
    assert torch.allclose(tokens.encoder_attention.sum(), torch.tensor(2 / 4), atol=1e-5)
    with foveate.prune(ernie.model, "divprune", keep=0.5) as pruning:
        assert gap(generate(ernie, inputs), generate(ernie, inputs, use_cache=False)) < 1e-4
        (image,) = pruning.report().images
    assert (image.modality, image.tokens_before, image.tokens) == ("video", 12, 6)


def test_tokens_are_in_raster_order(ernie: Zoo) -> None:
    assert most_moved_by_painting(ernie, 1, 3) == {"features": 8, "encoder_features": 8}


def test_what_reads_routers_is_refused(ernie: Zoo) -> None:
    with pytest.raises(foveate.ModelError, match="router"):
        foveate.attach(ernie.model, "fastmmoe", keep=0.5)


def test_costs(ernie: Zoo) -> None:
    adapter = adapter_of(ernie.model)
    # A router of 4 experts, of which a token takes 2 with three matrices of 16 x 64 each; the first layer is dense.
    assert adapter.routed_weights() == [0] + [4 * 64 + 2 * 3 * 16 * 64] * 3
    assert adapter.patches(foveate.Grid(2, 3)) == 24
    assert adapter.patches(foveate.Grid(2, 3, 2)) == 96
    assert adapter.vision_attention_pairs(foveate.Grid(2, 3, 2)) == [4 * 24**2] * 2
