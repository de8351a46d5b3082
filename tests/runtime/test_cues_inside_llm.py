"""What methods inside the LLM are shown, against eager attention and the model's own embeddings and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
import tiny_models as zoo_module
from foveate.importance.rotary import join_sections, rotary_decay
from foveate.methods import Where
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.tokens import Cue, VisualTokens
from models.attention_spy import Spy
from tiny_models import Zoo

from .helpers import TEXTS, generate, kernels, logits, pair, visual

ALL = frozenset({Cue.INPUT_EMBEDDINGS, Cue.TEXT_EMBEDDINGS, Cue.LLM_TEXT_ATTENTION, Cue.ROTARY_DECAY})


@dataclass(frozen=True)
class Inside(Spy):
    """Looks on inside the LLM."""

    where = Where.INSIDE_LLM

    layer: int = 2


def two_images(z: Zoo) -> dict[str, Tensor]:
    pictures = [[zoo_module.picture(84, 112, 0), zoo_module.picture(56, 56, 1)], [zoo_module.picture(56, 168, 3)]]
    return zoo_module.inputs(z, pictures, TEXTS)


def eager(z: Zoo, inputs: Any, layer: int) -> Tensor:
    """Attention (B, H, L, L) of a layer, by transformers itself."""
    with kernels(z.model, "eager"), torch.no_grad():
        return z.model(**inputs, output_attentions=True).attentions[layer]


def entering(z: Zoo, inputs: Any) -> dict[str, Any]:
    """What the first decoder layer is given."""
    found: dict[str, Any] = {}

    def hear(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"])

    handle = z.model.model.language_model.layers[0].register_forward_pre_hook(hear, with_kwargs=True)
    logits(z, inputs)
    handle.remove()
    return found


def shown(z: Zoo, inputs: Any, *earlier: Any, scope: Any = "image") -> VisualTokens:
    spy = Inside(wants=ALL)
    with foveate.prune(z.model, [*earlier, spy], keep=[0.6, 0.5, 0.4][-len(earlier) - 1 :], scope=scope):
        logits(z, inputs)
    (tokens,) = spy.seen
    return tokens


@pytest.mark.parametrize("scope", ["image", "prompt"])
def test_without_earlier_stages(zoo: Zoo, scope: Any) -> None:
    inputs = two_images(zoo)
    tokens = shown(zoo, inputs, scope=scope)
    attention, given, image = eager(zoo, inputs, 1), entering(zoo, inputs), visual(zoo, inputs)
    axes = zoo.model.config.get_text_config().rope_parameters.get("mrope_section", ())
    spans = [image[0].nonzero()[:, 0].split(tokens.sizes[:2] if scope == "image" else tokens.sizes[0])]
    spans += [(image[1].nonzero()[:, 0],)]
    places = [(row, span) for row, of_row in enumerate(spans) for span in of_row]
    assert len(places) == len(tokens.grids)
    for pool, (row, span) in enumerate(places):
        n, real = len(span), tokens.text_valid[pool]
        text = (inputs["attention_mask"][row].bool() & ~image[row]).nonzero()[:, 0]
        assert torch.equal(tokens.text(pool), given["hidden"][row, text])
        assert torch.equal(tokens.input_embeddings[pool, :n], given["hidden"][row, span])
        assert torch.equal(tokens.text_follows[pool, real], text > span[-1])
        assert not tokens.text_follows[pool, ~real].any()
        expected = attention[row][:, text][:, :, span].permute(2, 0, 1)
        assert torch.allclose(tokens.llm_text_attention[pool, :n][..., real], expected, atol=1e-6)
        if scope == "image":  # else text between two images reads the first
            assert not tokens.llm_text_attention[pool, :n][..., ~tokens.text_follows[pool]].any()
        cos, sin = (table.expand(2, -1, -1)[row] for table in join_sections(given["position_embeddings"], axes))
        turned = cos + torch.cat([-torch.ones(cos.shape[1] // 2), torch.ones(cos.shape[1] // 2)]) * sin  # ones, rotated
        assert torch.allclose(
            tokens.rotary_decay[pool, :n, real], turned[span] @ turned[text].mT / cos.shape[1], atol=1e-5
        )


def test_after_earlier_stages(zoo: Zoo) -> None:
    """Of what is left, attention is that of the shortened sequence; embeddings are those that entered."""
    inputs = pair(zoo)
    earlier = ["avgpool" if zoo.name == "llava" else "divprune", AtLayer(foveate.get_method("divprune"), 1)]
    tokens, image = shown(zoo, inputs, *earlier), visual(zoo, inputs)
    plain = entering(zoo, inputs)
    with foveate.prune(zoo.model, earlier, keep=[0.6, 0.5]) as pruning:
        attention, given = eager(zoo, inputs, 1), entering(zoo, inputs)
        kept = [one.kept for one in pruning.report().images]
        step = pruning._last
    assert step is not None and step.before is not None
    for row in range(2):
        alive, n = tokens.valid[row], len(kept[row])
        assert torch.equal(alive[:n], kept[row])
        text = (inputs["attention_mask"][row].bool() & ~image[row]).nonzero()[:, 0]
        real = tokens.text_valid[row]
        assert torch.equal(tokens.text(row), plain["hidden"][row, text])
        at = step.locate(text, row, 2)
        span = step.locate(image[row].nonzero()[:, 0][kept[row]], row, 2)
        expected = attention[row][:, at][:, :, span].permute(2, 0, 1)
        assert torch.allclose(tokens.llm_text_attention[row, alive][..., real], expected, atol=1e-6)
        assert not tokens.llm_text_attention[row, ~alive].any()
        entered = step.locate(image[row].nonzero()[:, 0], row, 0)
        embedded = torch.where((entered >= 0)[:, None], given["hidden"][row, entered], 0.0)
        assert torch.equal(tokens.input_embeddings[row, :n], embedded)


def test_what_was_generated_is_no_text_of_the_prompt(llava: Zoo) -> None:
    spy = Inside(wants=ALL)
    with foveate.prune(llava.model, spy, keep=0.5):
        generate(llava, pair(llava), use_cache=False)
    assert len(spy.seen) == 5
    for tokens in spy.seen:
        assert torch.equal(tokens.text_embeddings, spy.seen[0].text_embeddings)
        assert torch.allclose(tokens.llm_text_attention, spy.seen[0].llm_text_attention, atol=1e-6)


def test_decay_of_the_published_head() -> None:
    """Head of 128, base 10000; figures computed elsewhere."""
    angles = torch.tensor([0.0, 1, 10, 100, 600])[:, None] * 10000.0 ** (-torch.arange(0, 128, 2) / 128)
    table = (torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin())
    expected = torch.tensor([1.0, 0.970214, 0.669063, 0.477241, 0.207652])
    torch.testing.assert_close(rotary_decay(table, (table[0][:1], table[1][:1]))[:, 0], expected, atol=2e-6, rtol=0)
    scaled = (table[0] * 1.3, table[1] * 1.3)  # some models scale their tables
    torch.testing.assert_close(rotary_decay(scaled, scaled), rotary_decay(table, table), atol=2e-6, rtol=0)


def test_text_attention_alone_does_not_make_text_comparable(llava: Zoo) -> None:
    spy = Inside(wants=frozenset({Cue.TEXT_EMBEDDINGS}))
    with pytest.raises(foveate.MethodError, match=r"spy compares images with the text.*use it before the LLM"):
        foveate.attach(llava.model, spy)
    with pytest.raises(foveate.MethodError, match="allows layers 1 to 3"):
        foveate.attach(llava.model, Inside(wants=frozenset({Cue.LLM_TEXT_ATTENTION}), layer=0))
