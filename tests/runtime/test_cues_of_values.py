"""Values of the layer below, and rotary angles by position: against the model's own attention and frequencies."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
import tiny_families
import tiny_models as zoo_module
from foveate.importance.rotary import rotary_means
from foveate.tokens import Cue, VisualTokens
from models.attention_spy import Spy
from tiny_models import Zoo

from .helpers import TEXTS, kernels, logits, visual
from .test_cues_inside_llm import Inside

VALUES = frozenset({Cue.LLM_VALUES, Cue.TEXT_VALUES, Cue.ROTARY_MEANS})


def two_prompts(z: Zoo) -> dict[str, Tensor]:
    pictures = [[zoo_module.picture(84, 112, 0), zoo_module.picture(56, 56, 1)], [zoo_module.picture(56, 168, 3)]]
    return zoo_module.inputs(z, pictures, TEXTS)


def heard(z: Zoo, inputs: Any, layer: int) -> tuple[Tensor, Tensor]:
    """Values (B, L, K, c) of a layer by eager attention, and the position ids that the language model is given."""
    text, found = z.model.model.language_model, {}
    module = sys.modules[type(text.layers[0].self_attn).__module__]
    eager = module.eager_attention_forward

    def attend(of: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if of is text.layers[layer].self_attn:
            found["values"] = value.transpose(1, 2)
        return eager(of, query, key, value, *args, **kwargs)

    def hear(of: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found["ids"] = kwargs.get("position_ids")

    handle = text.register_forward_pre_hook(hear, with_kwargs=True)
    module.eager_attention_forward = attend
    try:
        with kernels(z.model, "eager"):
            logits(z, inputs)
    finally:
        module.eager_attention_forward = eager
        handle.remove()
    return found["values"], found["ids"]


def means_of(frequencies: Tensor, ids: Tensor | None, length: int) -> Tensor:
    """(B or 1, L, 2): mean cosine and sine, over frequencies and axes."""
    if ids is None:
        ids = torch.arange(length)[None]
    ids = ids[1:] if ids.ndim == 3 and len(ids) == 4 else ids if ids.ndim == 3 else ids[None]
    angles = ids[..., None].double() * frequencies.double()
    return torch.stack([angles.cos(), angles.sin()], -1).mean((0, 3)).float()


def spans(inputs: Any, tokens: VisualTokens, image: Tensor) -> list[tuple[int, Tensor]]:
    first = image[0].nonzero()[:, 0].split(tokens.sizes[:2])
    return [(0, span) for span in first] + [(1, image[1].nonzero()[:, 0])]


def test_values_and_angles(zoo: Zoo) -> None:
    """Two prompts of different lengths, one of them padded, and two images in one of them."""
    inputs, spy = two_prompts(zoo), Inside(wants=VALUES)
    with foveate.prune(zoo.model, spy, keep=0.5):
        logits(zoo, inputs)
    (tokens,), (values, ids) = spy.seen, heard(zoo, inputs, 1)
    image, real = visual(zoo, inputs), inputs["attention_mask"].bool()
    expected = means_of(zoo.model.model.language_model.rotary_emb.inv_freq, ids, values.shape[1])
    for pool, (row, span) in enumerate(spans(inputs, tokens, image)):
        torch.testing.assert_close(tokens.cue(Cue.LLM_VALUES)[pool, : len(span)], values[row, span])
        words = (real[row] & ~image[row]).nonzero()[:, 0]
        torch.testing.assert_close(tokens.cue(Cue.TEXT_VALUES)[pool, tokens.text_valid[pool]], values[row, words])
        own = expected[row if len(expected) > 1 else 0, span]
        torch.testing.assert_close(tokens.cue(Cue.ROTARY_MEANS)[pool, : len(span)], own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("earlier", ["before", "inside"])
def test_behind_another_stage(llava: Zoo, earlier: str) -> None:
    """What was dropped has zeros, and what stays its own place."""
    inputs, first = two_prompts(llava), foveate.get_method("divprune")
    plain, spy = Inside(wants=VALUES, layer=3), Inside(wants=VALUES, layer=3)
    with foveate.prune(llava.model, plain, keep=0.5):
        logits(llava, inputs)
    at = first if earlier == "before" else foveate.AtLayer(first, 2)
    with foveate.prune(llava.model, [at, spy], keep=[0.6, 0.4]):
        logits(llava, inputs)
    before, behind = plain.seen[0], spy.seen[0]
    assert 0 < int(behind.valid.sum()) < int(before.valid.sum())
    shown, whole = behind.cue(Cue.ROTARY_MEANS), before.cue(Cue.ROTARY_MEANS)
    torch.testing.assert_close(shown[behind.valid], whole[behind.valid])
    assert not behind.cue(Cue.LLM_VALUES)[~behind.valid].any() and behind.cue(Cue.LLM_VALUES)[behind.valid].any()


# Tables by kind of layer, of complex numbers, and of three axes for positions of one.
UNLIKE = {"gemma4", "llama4", "minicpmv4_6", "llava", "qwen2_5_vl"}
FAMILIES = [
    pytest.param(make, id=make.__name__, marks=() if make.__name__ in UNLIKE else pytest.mark.slow)
    for make in (*tiny_families.MAKERS, *zoo_module.MAKERS)
]


@pytest.mark.parametrize("make", FAMILIES)
def test_before_the_llm_every_family_gives_the_same_as_inside(make: Any) -> None:
    z = make()
    inputs = zoo_module.inputs(z, [[zoo_module.picture(84, 112, 0)]], TEXTS[:1])
    before, inside = Spy(wants=frozenset({Cue.ROTARY_MEANS})), Inside(wants=frozenset({Cue.ROTARY_MEANS}), layer=1)
    for spy in (before, inside):
        with foveate.prune(z.model, spy, keep=0.5):
            logits(z, inputs)
    means = before.seen[0].cue(Cue.ROTARY_MEANS)[before.seen[0].valid]
    assert means.isfinite().all() and len(means.unique(dim=0)) > 1
    kinds = getattr(z.model.config.get_text_config(), "layer_types", None) or ["", ""]
    if kinds[0] == kinds[1] and not z.model.config.get_text_config().model_type.startswith("llama4"):
        torch.testing.assert_close(means, inside.seen[0].cue(Cue.ROTARY_MEANS)[inside.seen[0].valid])


def test_a_quarter_turn_and_two_axes() -> None:
    """One frequency of a quarter turn a position: by hand. Of two axes the mean counts."""
    quarter = torch.pi / 2

    def rotate(ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = ids[..., None].float() * quarter
        return angles.cos(), angles.sin()

    flat = rotary_means(rotate, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(flat, torch.tensor([[[1.0, 0], [0, 1], [-1, 0]]]), atol=1e-6, rtol=0)
    both = rotary_means(rotate, torch.tensor([[[0, 1, 2]], [[0, 0, 1]]]))
    torch.testing.assert_close(both, torch.tensor([[[1.0, 0], [0.5, 0.5], [-0.5, 0.5]]]), atol=1e-6, rtol=0)
    complex_table = rotary_means(
        lambda ids: torch.polar(torch.ones(1, 3, 1), ids[..., None] * quarter), torch.tensor([[0, 1, 2]])
    )
    torch.testing.assert_close(complex_table, flat)
