"""Gemma 4: pictures of any size, clips, inputs of each layer, keys of lower layers, and images that see themselves."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers as tf

import foveate
import tiny_families
import tiny_models
from foveate.methods import get_method
from foveate.models import adapter_of
from foveate.tokens import Grid
from runtime.helpers import TEXTS, gap, generate, kernels, logits
from tiny_models import Zoo

from .attention_spy import shown

pytestmark = pytest.mark.skipif(
    tiny_families.EARLIER or not hasattr(tf, "Gemma4ForConditionalGeneration"),
    reason="foveate refuses Gemma 4 on this release of transformers, or there is none",
)


@pytest.fixture(params=["gemma4", "gemma4_small"])
def model(request: pytest.FixtureRequest) -> Zoo:
    return getattr(tiny_families, request.param)()


def two_images(z: Zoo) -> dict[str, torch.Tensor]:
    return tiny_models.inputs(z, [[tiny_models.picture(84, 112, 0), tiny_models.picture(56, 168, 1)]], TEXTS[:1])


def clip(z: Zoo) -> dict[str, torch.Tensor]:
    """A prompt with a clip of two frames, each of 2 x 4 tokens, between times; its patches are those of images."""
    images = two_images(z)
    positions = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(8), indexing="ij"), -1).flip(-1).flatten(0, 1)
    token = z.tokenizer.convert_ids_to_tokens(z.visual_ids[1])
    batch = z.processor.tokenize(["<s>" + "".join(f"{time}:<boi>{token * 8}<eoi>" for time in "ab") + TEXTS[0]])
    pixels = images["pixel_values"][:, : len(positions)]
    ids = positions.expand(1, 2, -1, -1)
    media = {"pixel_values_videos": pixels[None], "video_position_ids": ids}
    if "num_frames_per_video" in inspect.signature(z.model.forward).parameters:  # frames of all clips in one row
        media = {name: value[0] for name, value in media.items()} | {"num_frames_per_video": torch.tensor([2])}
    return {**batch, **media}


def test_cues_are_means_over_the_patches_of_a_token(model: Zoo) -> None:
    """Attention received, without padding, in the tower's last layer; features as the encoder pools them."""
    inputs, adapter = two_images(model), adapter_of(model.model)
    tokens = shown(model.model, inputs)
    with kernels(model.model, "eager"), torch.no_grad():
        positions = inputs["image_position_ids"]
        out = adapter.vision(inputs["pixel_values"], pixel_position_ids=positions, output_attentions=True)
    start = 0
    for image, grid in enumerate(adapter.grids(inputs)["image"]):
        real = (positions[image] >= 0).all(-1)
        assert int(real.sum()) == adapter.patches(grid)
        received = out.attentions[-1][image][:, real][..., real].mean((0, 1))
        square = received.view(1, 1, grid.rows * 2, grid.columns * 2)
        expected = torch.nn.functional.avg_pool2d(square, 2).flatten()
        assert torch.allclose(tokens.encoder_attention[image, : len(grid)], expected, atol=1e-6)
        features = out.last_hidden_state[start : start + len(grid)]
        assert torch.allclose(tokens.encoder_features[image, : len(grid)], features, atol=1e-4)
        start += len(grid)


def test_frames_of_a_clip_are_pruned_one_by_one(model: Zoo) -> None:
    inputs = clip(model)
    assert adapter_of(model.model).grids(inputs) == {"video": [Grid(2, 4), Grid(2, 4)]}
    plain = logits(model, inputs)
    for method in ("divprune", foveate.AtLayer(get_method("divprune"), 2)):
        with foveate.prune(model.model, method, keep=0.5) as pruning:
            held = generate(model, inputs)
            assert [int(image.kept.sum()) for image in pruning.report().images] == [4, 4]
            assert gap(held, generate(model, inputs, use_cache=False)) < 2e-5
    assert torch.equal(logits(model, inputs), plain)


def test_layers_that_take_keys_from_below_bound_where_tokens_go() -> None:
    z = tiny_families.gemma4_small()
    adapter = adapter_of(z.model)
    assert [adapter.source_of_keys(layer) for layer in range(6)] == [0, 1, 2, 3, 2, 3]
    with pytest.raises(foveate.ModelError, match="at layer 2 at most"):
        foveate.prune(z.model, foveate.AtLayer(get_method("divprune"), 3), keep=0.5)
    assert adapter_of(tiny_families.gemma4().model).deepest_stage == 3


def test_the_report_counts_what_each_layer_keeps(model: Zoo) -> None:
    """Full attention has heads twice as wide, and layers with keys from below keep none."""
    inputs = two_images(model)
    with foveate.prune(model.model, "divprune", keep=0.5) as pruning, torch.no_grad():
        output = model.model(**inputs, use_cache=True)
        report = pruning.report()
    tokens = report.visual_tokens_per_layer[0] + int((inputs["mm_token_type_ids"] == 0).sum())
    widths = {"sliding_attention": 16, "full_attention": 32}
    kinds = model.model.config.text_config.layer_types
    own = kinds[: len(kinds) - model.model.config.text_config.num_kv_shared_layers]
    assert report.kv_bytes == sum(2 * 2 * widths[kind] * tokens * 4 for kind in own)
    assert output.logits.isfinite().all()


@pytest.mark.parametrize("method", ["divprune", foveate.AtLayer(get_method("divprune"), 2)], ids=str)
def test_upper_layers_may_run_on_the_last_tokens_alone(model: Zoo, method: object) -> None:
    """Where they share keys, transformers 5.24 runs them on the tokens whose logits are asked for."""
    inputs = two_images(model)
    with foveate.prune(model.model, method, keep=0.5):
        whole = logits(model, inputs)
        for last in (1, 3):
            assert torch.allclose(logits(model, inputs, logits_to_keep=last), whole[:, -last:], atol=2e-5)
        place = torch.tensor([inputs["input_ids"].shape[1] - 1])
        assert torch.allclose(logits(model, inputs, logits_to_keep=place), whole[:, -1:], atol=2e-5)
        if hasattr(tf.modeling_utils, "slice_logits_to_keep"):  # which takes masks, as earlier releases do not
            mask = torch.arange(inputs["input_ids"].shape[1])[None] == place
            assert torch.allclose(logits(model, inputs, logits_to_keep=mask).flatten(), whole[0, -1], atol=2e-5)
