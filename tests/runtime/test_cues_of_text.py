"""The prompt's text, as methods before the LLM are shown it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.models import adapter_of
from foveate.tokens import Cue, VisualTokens
from models.attention_spy import Spy
from tiny_models import Zoo

from .helpers import TEXTS, gap, generate, logits, pair, single, visual

METHODS = ["cdpruner", "trim", "mmtok", "eadp"]


def seen(z: Zoo, inputs: Any, **options: Any) -> VisualTokens:
    spy = Spy(wants=frozenset({Cue.TEXT_EMBEDDINGS}))
    with foveate.prune(z.model, spy, keep=0.5, **options):
        logits(z, inputs)
    (tokens,) = spy.seen
    return tokens


def words(z: Zoo, inputs: Any, row: int) -> torch.Tensor:
    """What the language model reads of a prompt's text: no placeholders, no padding."""
    real = inputs["attention_mask"][row].bool() & ~visual(z, inputs)[row]
    return z.model.get_input_embeddings()(inputs["input_ids"][row, real])


def test_each_image_is_shown_the_text_of_its_prompt(zoo: Zoo) -> None:
    pictures = [[zoo_module.picture(84, 112, 0)], [zoo_module.picture(56, 168, 3)]]
    inputs = zoo_module.inputs(zoo, pictures, [TEXTS[0], "what?"])
    tokens = seen(zoo, inputs)
    assert len(words(zoo, inputs, 0)) != len(words(zoo, inputs, 1))  # so that there is padding
    for row in (0, 1):
        assert torch.equal(tokens.text(row), words(zoo, inputs, row))


def test_images_of_a_prompt_share_its_text(zoo: Zoo) -> None:
    pictures = [[zoo_module.picture(84, 112, 0), zoo_module.picture(56, 56, 1)], [zoo_module.picture(56, 56, 2)]]
    inputs = zoo_module.inputs(zoo, pictures, TEXTS)
    for options, prompts in (({}, [0, 0, 1]), ({"scope": "prompt"}, [0, 1])):
        tokens = seen(zoo, inputs, **options)
        assert [len(pool) for pool in tokens.grids] == ([1, 1, 1] if not options else [2, 1])
        for row, prompt in enumerate(prompts):
            assert torch.equal(tokens.text(row), words(zoo, inputs, prompt))


def test_what_was_generated_is_no_text_of_the_prompt(zoo: Zoo) -> None:
    inputs = pair(zoo)
    spy = Spy(wants=frozenset({Cue.TEXT_EMBEDDINGS}))
    with foveate.prune(zoo.model, spy, keep=0.5):
        generate(zoo, inputs, use_cache=False)
    assert len(spy.seen) == 5
    for tokens in spy.seen:
        assert torch.equal(tokens.text(0), words(zoo, inputs, 0))


@pytest.mark.parametrize("method", METHODS)
def test_methods_follow_the_text(llava: Zoo, method: str) -> None:
    follows = False
    for picture in (zoo_module.picture(84, 112, seed) for seed in range(3)):
        kept = set()
        for text in (*TEXTS, "where", "red", "a blue one", "is it in the picture"):
            with foveate.prune(llava.model, method, keep=0.25) as pruning:
                logits(llava, zoo_module.inputs(llava, [[picture]], [text]))
                kept.add(tuple(pruning.report().images[0].kept.tolist()))
        assert {sum(one) for one in kept} == {4}
        follows |= len(kept) > 1
    assert follows


@pytest.mark.parametrize("method", METHODS)
def test_batched_equals_single_and_cached_equals_uncached(zoo: Zoo, method: str) -> None:
    with foveate.prune(zoo.model, method, keep=0.4):
        both, alone = generate(zoo, pair(zoo)), generate(zoo, single(zoo))
        assert gap(both, generate(zoo, pair(zoo), use_cache=False)) < 2e-5
    assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(both.logits, alone.logits, strict=True)) < 2e-5


def test_shortened_inputs(llava: Zoo) -> None:
    inputs = pair(llava)
    with foveate.prune(llava.model, "cdpruner", keep=0.4):
        hooked = generate(llava, inputs)
    assert gap(hooked, generate(llava, foveate.prune_inputs(llava.model, inputs, "cdpruner", keep=0.4))) < 2e-5


def test_not_inside_the_llm(llava: Zoo) -> None:
    method = foveate.get_method("cdpruner")
    with pytest.raises(foveate.MethodError, match=r"cdpruner@2 compares images with the text.*use it before the LLM"):
        foveate.attach(llava.model, AtLayer(method, 2))
    with foveate.prune(llava.model, AtLayer(method, 0), keep=0.4):
        at_zero = logits(llava, single(llava))
    with foveate.prune(llava.model, method, keep=0.4):
        assert torch.equal(logits(llava, single(llava)), at_zero)


def test_adapters_do_not_promise_it(zoo: Zoo) -> None:
    """Servers ask adapters what they can give, and encode images without knowing the prompt."""
    adapter = adapter_of(zoo.model)
    assert Cue.TEXT_EMBEDDINGS not in adapter.cues
    listed = {row.model_type: row for row in foveate.supported_models()}
    assert Cue.TEXT_EMBEDDINGS in listed[adapter.model_type].cues
