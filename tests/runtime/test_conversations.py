"""Caches that live longer than one call: more turns, copies, decoding by hand, and unusual batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.runtime.compat import cache_of_output
from tiny_models import Zoo

from .helpers import TEXTS, cached, gap, generate, logits, pair, single

STAGES = [AtLayer(foveate.get_method("divprune"), layer) for layer in (1, 3)]
METHODS: list[Any] = ["divprune", "idpruner", AtLayer(foveate.get_method("divprune"), 2), STAGES]


def ratios(method: Any) -> Any:
    """Each stage of a schedule keeps less than the one before."""
    return [0.7, 0.4] if isinstance(method, list) else 0.4


def joined(first: dict[str, Any], answer: torch.Tensor, second: dict[str, Any]) -> dict[str, Any]:
    """The whole conversation as one prompt: what came in, what was answered, what comes next."""
    ids = torch.cat([first["input_ids"], answer, second["input_ids"]], 1)
    out: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in first:
        kinds = [first["mm_token_type_ids"], torch.zeros_like(answer), second["mm_token_type_ids"]]
        out["mm_token_type_ids"] = torch.cat(kinds, 1)
    for key in ("pixel_values", "image_grid_thw"):
        if key in first:
            out[key] = torch.cat([first[key], second[key]])
    return out


@pytest.mark.parametrize(
    ("method", "keep"),
    # With token counts a stage may drop nothing of the small first image and something of the second, or nothing.
    [*((method, 0.4) for method in METHODS[:3]), (STAGES, [0.7, 0.4]), (STAGES, [12, 8]), (STAGES, [8, 8])],
    ids=str,
)
def test_a_second_turn_may_bring_a_second_image(zoo: Zoo, method: Any, keep: Any) -> None:
    """Each image is chosen by what came before it, so that two turns equal the whole conversation in one prompt."""
    first = single(zoo)
    second = inputs_of(zoo, 140, 84, 4, "and a small")
    with foveate.prune(zoo.model, method, keep=keep) as pruning:
        answer = generate(zoo, first)
        said = answer.sequences[:, first["input_ids"].shape[1] :]
        whole = joined(first, said, second)
        reference = generate(zoo, whole)
        assert len(pruning.report().images) == 2
        turn = {**whole, **{k: second[k] for k in ("pixel_values", "image_grid_thw") if k in second}}
        if "image_grid_thw" in whole:  # with the new image's grid alone, generate cannot place the first one
            turn["position_ids"] = positions_of(zoo, whole)
        continued = generate(zoo, turn, **cached(cache_of_output(answer)))
        assert len(pruning.report().images) == 1
    assert gap(continued, reference) < 2e-5


def inputs_of(z: Zoo, height: int, width: int, seed: int, text: str) -> dict[str, torch.Tensor]:
    return zoo_module.inputs(z, [[zoo_module.picture(height, width, seed)]], [text])


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_copied_cache_serves_two_continuations(zoo: Zoo, method: Any) -> None:
    inputs = single(zoo)
    with foveate.prune(zoo.model, method, keep=ratios(method)), torch.no_grad():
        cache = cache_of_output(zoo.model(**inputs))
        kept = copy.deepcopy(cache)
        assert kept._foveate.owner is cache._foveate.owner
        ids = torch.cat([inputs["input_ids"], torch.tensor([[20, 21]])], 1)
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        turn |= {k: v for k, v in inputs.items() if k == "image_grid_thw"}
        if "mm_token_type_ids" in inputs:
            turn["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 2))
        assert gap(generate(zoo, turn, **cached(cache)), generate(zoo, turn, **cached(kept))) == 0


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_two_conversations_interleave(zoo: Zoo, method: Any) -> None:
    one, other = single(zoo), inputs_of(zoo, 56, 140, 7, TEXTS[1])
    token = torch.tensor([[20]])
    with foveate.prune(zoo.model, method, keep=ratios(method)), torch.no_grad():
        expected = [generate(zoo, inputs, max_new_tokens=2, min_new_tokens=2).logits[1] for inputs in (one, other)]
        caches = [cache_of_output(zoo.model(**inputs)) for inputs in (one, other)]
        firsts = [generate(zoo, i, max_new_tokens=1, min_new_tokens=1).sequences[:, -1:] for i in (one, other)]
        assert token.shape == firsts[0].shape
        for cache, inputs, first, logit in zip(caches, (one, other), firsts, expected, strict=True):
            mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
            positions = decode_positions(zoo, inputs)
            step = zoo.model(input_ids=first, attention_mask=mask, **cached(cache), position_ids=positions)
            assert torch.allclose(step.logits[:, -1], logit, atol=2e-5)


def decode_positions(z: Zoo, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """transformers' Qwen-VL models cannot decode by hand without them, pruned or not; others can."""
    if not z.mrope:
        return None
    return positions_of(z, inputs)[1:].amax((0, 2))[None, :, None].expand(3, -1, 1) + 1


def positions_of(z: Zoo, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """M-RoPE positions (4, B, L): the text index, then time, row and column."""
    ids, kinds = inputs["input_ids"], inputs["mm_token_type_ids"]
    positions, _ = z.model.model.get_rope_index(ids, kinds, image_grid_thw=inputs["image_grid_thw"])
    return torch.cat([torch.arange(ids.shape[1])[None, None], positions])


def test_a_prompt_without_image_beside_one_with(zoo: Zoo) -> None:
    texts = ["<s>" + zoo.image + TEXTS[0], "<s>" + TEXTS[1]]
    batch = zoo.processor([[picture()], []], texts)
    if not zoo.mrope:
        del batch["mm_token_type_ids"]
    with foveate.prune(zoo.model, "divprune", keep=0.4) as pruning:
        both = generate(zoo, batch)
        assert pruning.report().images[0].prompt == 0 and len(pruning.report().images) == 1
        image = generate(zoo, inputs_of(zoo, 84, 112, 0, TEXTS[0]))
        words = zoo.processor.tokenize(texts[1:])
        text = generate(zoo, {k: v for k, v in words.items() if k != "mm_token_type_ids"})
    for row, alone in enumerate((image, text)):
        assert max(float((a[row] - b[0]).abs().max()) for a, b in zip(both.logits, alone.logits, strict=True)) < 2e-5


def picture() -> Any:
    return zoo_module.picture(84, 112, 0)


def test_text_alone_is_not_touched(zoo: Zoo) -> None:
    words = {k: v for k, v in zoo.processor.tokenize(["<s>" + TEXTS[0]]).items() if k != "mm_token_type_ids"}
    plain = generate(zoo, words)
    with foveate.prune(zoo.model, ["divprune", "fastv"], keep=[0.5, 0.25]) as pruning:
        assert gap(generate(zoo, words), plain) == 0
        with pytest.raises(foveate.FoveateError, match="nothing to report yet"):
            pruning.report()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_right_padding_gives_the_logits_of_left_padding(zoo: Zoo, method: Any) -> None:
    left = pair(zoo)
    shift = [int((row == 0).sum()) for row in left["attention_mask"]]
    right = dict(left)
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if key in left:
            right[key] = torch.stack([row.roll(-n) for row, n in zip(left[key], shift, strict=True)])
    with foveate.prune(zoo.model, method, keep=ratios(method)):
        assert torch.allclose(logits(zoo, right)[:, -1], logits(zoo, left)[:, -1], atol=2e-5)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_several_samples_of_each_prompt(zoo: Zoo, method: Any) -> None:
    inputs = pair(zoo)
    options = {"do_sample": True, "num_return_sequences": 3, "output_logits": False}
    with foveate.prune(zoo.model, method, keep=ratios(method)):
        torch.manual_seed(0)
        cached = generate(zoo, inputs, **options).sequences
        torch.manual_seed(0)
        assert torch.equal(cached, generate(zoo, inputs, use_cache=False, **options).sequences)
    assert cached.shape[0] == 6


def test_a_pruned_cache_refuses_to_be_cropped(llava: Zoo) -> None:
    with foveate.prune(llava.model, "divprune", keep=0.5), torch.no_grad():
        cache = cache_of_output(llava.model(**single(llava)))
        with pytest.raises(foveate.RuntimeStateError, match="without an assistant"):
            cache.crop(3)


@pytest.mark.parametrize("make", zoo_module.VIDEO_MAKERS, ids=lambda make: make.__name__)
def test_static_cache_with_rows_that_keep_different_counts_of_an_unpadded_batch(make: Any) -> None:
    """Without padding the model makes no mask, so the one that shortened rows need is made from nothing."""
    model = make()
    pictures = [[zoo_module.picture(84, 112, 0)], [zoo_module.picture(56, 112, 1)]]
    longer = zoo_module.inputs(model, pictures[:1], ["what"])["input_ids"].shape[1]
    for extra in range(1, 9):  # a text that makes up for the smaller picture
        inputs = zoo_module.inputs(model, pictures, ["what", "what" + " is" * extra])
        if bool(inputs["attention_mask"].all()):
            break
    assert inputs["input_ids"].shape[1] == longer and bool(inputs["attention_mask"].all())
    method = AtLayer(foveate.get_method("divprune"), 2)
    with foveate.prune(model.model, method, keep=0.5):
        assert gap(generate(model, inputs), generate(model, inputs, cache_implementation="static")) < 2e-5
