"""What every model family owes, on tiny random models of it: `tests/tiny_families.py` makes them.

The families of `tests/tiny_models.py` go through all runtime tests; these go through the heart of them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
import tiny_families
import tiny_models
from foveate.catalog import facts_of
from foveate.methods import get_method, method_names
from foveate.runtime.compat import cache_of_output
from runtime.helpers import TEXTS, cached, gap, generate, logits
from tiny_methods import settings_on
from tiny_models import Zoo

METHODS = ["divprune", foveate.AtLayer(get_method("divprune"), 2), "fastv"]
# Why a method may be refused on a tiny model beside what its page says: too few layers.
REASONS = (
    "from there on none of its layers with attention",
    "layers take keys and values of tokens from below",
)
# Chunked or windowed kernels sum in another order on sequences of another length.
CLOSE = 5e-4


@pytest.fixture(params=tiny_families.MAKERS, ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


def one_image(z: Zoo, seed: int = 0, text: int = 0) -> dict[str, torch.Tensor]:
    return tiny_models.inputs(z, [[tiny_models.picture(84, 112, seed)]], [TEXTS[text]])


def two_prompts(z: Zoo) -> dict[str, torch.Tensor]:
    pictures = [[tiny_models.picture(84, 112, 0)], [tiny_models.picture(84, 112, 3), tiny_models.picture(56, 84, 4)]]
    return tiny_models.inputs(z, pictures, TEXTS)


def test_pruning_equals_what_is_computed_by_hand(model: Zoo) -> None:
    """keep=1.0 bit for bit, shortened prompts and layers run by hand, cached as uncached, detached without a trace."""
    pictures = [tiny_models.picture(84, 112, 0), tiny_models.picture(56, 84, 1)]
    report = foveate.check(model.model, tiny_models.inputs(model, [pictures], TEXTS[:1]), ["divprune"])
    assert report.passed, report.checks
    assert report.methods["divprune"] is None


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_batches_and_caches_change_nothing(model: Zoo, method: Any) -> None:
    both, one = two_prompts(model), one_image(model)
    # PaliGemma before transformers 5.24 takes what it generated for the prompt, whose tokens all see each other.
    comparable = gap(generate(model, both), generate(model, both, use_cache=False)) < CLOSE
    assert comparable or model.name.startswith("paligemma")
    with foveate.prune(model.model, method, keep=0.4) as pruning:
        held = generate(model, both)
        report = pruning.report()
        assert report.tokens == sum(foveate.Budget(0.4).count(image.tokens_before) for image in report.images)
        assert not comparable or gap(held, generate(model, both, use_cache=False)) < CLOSE
        alone = generate(model, one)
    assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(held.logits, alone.logits, strict=True)) < CLOSE


@pytest.mark.parametrize("method", METHODS[:2], ids=str)
def test_a_next_turn_goes_on(model: Zoo, method: Any) -> None:
    """More text on the same cache, as in one forward of all of it."""
    inputs = one_image(model)
    ids = torch.cat([inputs["input_ids"], torch.tensor([[20, 21, 22]])], 1)
    longer: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            behind = 0 if inputs[name].any() else 1  # where all are of the prompt, what follows is not
            longer[name] = torch.nn.functional.pad(inputs[name], (0, 3), value=behind)
    grids = {name: value for name, value in inputs.items() if name.endswith("grid_thw")}
    with foveate.prune(model.model, method, keep=0.5), torch.no_grad():
        cache = cache_of_output(model.model(**inputs, use_cache=True))
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]
        continued = generate(model, {**grids, **longer}, **cached(cache))
        assert gap(continued, generate(model, {**inputs, **longer})) < CLOSE


def test_every_method_runs_right_or_refuses_as_documented(model: Zoo) -> None:
    inputs = one_image(model)
    plain = logits(model, inputs)
    for name in method_names():
        try:
            with foveate.prune(model.model, name, keep=0.4, **settings_on(model, name)) as pruning:
                pruned = logits(model, inputs)
                report = pruning.report()
        except foveate.FoveateError as error:
            said = str(error).replace(type(model.model).__name__, "MODEL")
            documented = facts_of(name).facts.get("refuses", "")
            known = f"“{said}”" in documented or any(reason in said for reason in REASONS)
            assert known, (name, said)
            continue
        assert pruned.isfinite().all(), name
        assert report.tokens < report.tokens_before, name
    assert torch.equal(logits(model, inputs), plain)
