"""Gemma 3 and PaliGemma: tokens that see later ones, in masks that the model makes around its language model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
import tiny_families
import tiny_models
from foveate.errors import RuntimeStateError
from foveate.methods import get_method
from foveate.models import adapter_of
from foveate.runtime.compat import cache_of_output
from runtime.helpers import TEXTS, cached, gap, generate, kernels, logits
from tiny_models import Zoo

from .attention_spy import shown

INSIDE = foveate.AtLayer(get_method("divprune"), 2)
MAKERS = [make for make in tiny_families.SEEING_LATER if make.__name__ in ("gemma3", "paligemma", "paligemma2")]
_REFUSED = pytest.mark.skipif(tiny_families.EARLIER, reason="refused on this release of transformers")


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


def one_image(z: Zoo, seed: int = 0) -> dict[str, torch.Tensor]:
    return tiny_models.inputs(z, [[tiny_models.picture(84, 112, seed)]], TEXTS[:1])


def causal(z: Zoo, inputs: Any) -> dict[str, torch.Tensor]:
    """The same without a token that sees later ones: no image for Gemma 3, all behind the prompt for PaliGemma."""
    return {**inputs, "token_type_ids": torch.full_like(inputs["token_type_ids"], 1 - z.processor.images_are)}


def staying(z: Zoo, inputs: Any, pruning: foveate.Pruning) -> torch.Tensor:
    """(L,) bool: which tokens of the one prompt stay."""
    stays = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    places = (inputs["input_ids"][0] == z.visual_ids[0]).nonzero()[:, 0]
    stays[places[~torch.cat([image.kept for image in pruning.report().images])]] = False
    return stays


@pytest.mark.parametrize("bidirectional", [True, False])
def test_equals_the_model_on_a_prompt_of_survivors(model: Zoo, bidirectional: bool) -> None:
    """transformers makes the masks of a prompt of embeddings that says of each survivor what it is."""
    inputs, base = one_image(model), model.model.model
    inputs = inputs if bidirectional else causal(model, inputs)
    with foveate.prune(model.model, "divprune", keep=0.4) as pruning:
        pruned = logits(model, inputs)
        stays = staying(model, inputs, pruning)
    with torch.no_grad():
        embeds = base.get_input_embeddings()(inputs["input_ids"])
        images = base.get_image_features(inputs["pixel_values"]).pooler_output
        embeds[inputs["input_ids"] == model.visual_ids[0]] = images.flatten(0, 1)
        first = int(model.name != "gemma3")  # PaliGemma counts positions from 1
        shortened = model.model(
            inputs_embeds=embeds[:, stays],
            attention_mask=inputs["attention_mask"][:, stays],
            token_type_ids=inputs["token_type_ids"][:, stays],
            position_ids=stays.nonzero().T + first,
            **({} if first == 0 else {"pixel_values": None}),
        ).logits
    assert torch.allclose(pruned, shortened, atol=2e-5)


def test_tokens_of_an_image_see_later_ones_and_so_do_survivors(model: Zoo) -> None:
    """Without the blocks the answer differs, so that the tests above can fail."""
    inputs = one_image(model)
    with foveate.prune(model.model, "divprune", keep=0.4):
        assert not torch.allclose(logits(model, inputs), logits(model, causal(model, inputs)), atol=1e-3)


@pytest.mark.parametrize("method", ["divprune", INSIDE], ids=str)
def test_kernels_and_static_caches_agree(model: Zoo, method: Any) -> None:
    inputs = one_image(model)
    with foveate.prune(model.model, method, keep=0.4):
        plain = generate(model, inputs)
        if model.name != "paligemma2":  # which transformers itself cannot run on one
            assert gap(plain, generate(model, inputs, cache_implementation="static")) < 2e-5
        with kernels(model.model, "eager"):
            assert gap(plain, generate(model, inputs)) < 2e-5


@_REFUSED
@pytest.mark.parametrize("method", ["divprune", INSIDE], ids=str)
def test_a_picture_in_a_later_turn(method: Any) -> None:
    """Its tokens see each other, wherever earlier ones of the pruned cache have gone."""
    z = tiny_families.gemma3()
    both = tiny_models.inputs(z, [[tiny_models.picture(84, 112, 0), tiny_models.picture(84, 112, 5)]], TEXTS[:1])
    second = both["input_ids"][0].tolist().index(z.tokenizer.convert_tokens_to_ids("<eoi>")) + 1
    turn = {name: both[name][:, :second] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with foveate.prune(z.model, method, keep=0.5), torch.no_grad():
        cache = cache_of_output(z.model(**turn, pixel_values=both["pixel_values"][:1], use_cache=True))
        later = z.model(
            input_ids=both["input_ids"][:, second:],
            attention_mask=both["attention_mask"],
            token_type_ids=both["token_type_ids"],
            pixel_values=both["pixel_values"][1:],
            **cached(cache),
        ).logits
        whole = logits(z, both)[:, -later.shape[1] :]
    assert torch.allclose(later[:, -8:], whole[:, -8:], atol=2e-5)


@pytest.mark.slow
def test_masks_of_another_form_are_refused(model: Zoo) -> None:
    inputs = one_image(model)
    with (
        kernels(model.model, "flex_attention"),
        foveate.prune(model.model, "divprune", keep=0.4),
        pytest.raises(RuntimeStateError, match="'sdpa'"),
    ):
        logits(model, inputs)


def test_cues_are_means_over_the_patches_of_a_token(model: Zoo) -> None:
    """Attention received in the tower's last layer, and its output, by average pooling."""
    inputs, adapter = one_image(model), adapter_of(model.model)
    tokens = shown(model.model, inputs)
    with kernels(model.model, "eager"), torch.no_grad():
        outputs = adapter.vision(inputs["pixel_values"], output_attentions=True)

    def pooled(patches: torch.Tensor) -> torch.Tensor:
        square = patches.mT.reshape(len(patches), -1, 8, 8)
        return torch.nn.functional.avg_pool2d(square, adapter.merge).flatten(2).mT

    received = outputs.attentions[-1].mean((1, 2))[..., None]
    assert torch.allclose(tokens.encoder_attention, pooled(received)[..., 0], atol=1e-6)
    assert torch.allclose(tokens.encoder_features, pooled(outputs.last_hidden_state), atol=1e-5)


def test_prune_inputs_is_refused(model: Zoo) -> None:
    """``generate`` could not be told which of the embeddings are of an image."""
    with pytest.raises(foveate.ModelError, match=r"use foveate\.prune\."):
        foveate.prune_inputs(model.model, one_image(model), "divprune", keep=0.4)
