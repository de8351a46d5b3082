"""Coordinate tokens around other methods: what stays, what is merged, which methods can be wrapped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
import tiny_models
from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.methods import Where, get_method
from foveate.methods.toolkit import check_contract
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.methods.toolkit.coordinates import count_coordinates
from foveate.tokens import Cue, Grid, VisualTokens
from runtime.helpers import gap, generate, pair
from tiny_models import Zoo


def example(seed: int = 0) -> VisualTokens:
    random = torch.Generator().manual_seed(seed)
    return VisualTokens(
        torch.randn(2, 30, 6, generator=random),
        ((Grid(5, 6),), (Grid(2, 4), Grid(3, 3))),
        rotary_means=torch.rand(2, 30, 2, generator=random),
        encoder_attention=torch.rand(2, 30, generator=random),
    )


def anchors_by_hand(means: torch.Tensor, number: int) -> list[int]:
    """The next token of each order in turn, until there are enough of both together."""
    orders = [means[:, kind].argsort(descending=True, stable=True).tolist() for kind in (0, 1)]
    found: list[int] = []
    for place in range(len(means)):
        found += sorted({order[place] for order in orders} - set(found))
    return sorted(found[: 2 * number])


@pytest.mark.parametrize("seed", range(3))
def test_the_rest_is_chosen_among_the_other_tokens(seed: int) -> None:
    tokens, method = example(seed), get_method("anchored", coordinates=0.1)
    count = torch.tensor([14, 7])
    keep = method.select(tokens, count).keep
    for row, n in enumerate(tokens.sizes):
        number = count_coordinates(0.1, n, int(count[row]))
        anchors = anchors_by_hand(tokens.rotary_means[row, :n], number)  # type: ignore[index]
        others = [i for i in range(n) if i not in anchors]
        alone = VisualTokens.of(tokens.features[row, others], Grid(1, len(others)))
        chosen = get_method("divprune").select(alone, count[row : row + 1] - len(anchors)).keep[0]
        expected = sorted([*anchors, *(others[i] for i in chosen.nonzero()[:, 0].tolist())])
        assert keep[row].nonzero()[:, 0].tolist() == expected


def test_anchors_are_merged_with_nothing() -> None:
    tokens, count = example(), torch.tensor([12, 8])
    inner, method = get_method("tome"), get_method("anchored", base="tome", coordinates=0.1)
    selection = method.select(tokens, count)
    merged = selection.merged(tokens.features)
    assert selection.keep.sum(1).tolist() == [12, 8]
    same = (merged == tokens.features).all(-1) & selection.keep
    assert int(same[0].sum()) >= 6 and not same[0][selection.keep[0]].all()
    assert inner.select(tokens, count).target is not None and selection.target is not None
    assert torch.equal(selection.target[selection.keep], selection.keep.nonzero()[:, 1])


@pytest.mark.parametrize("base", ["divprune", "visionzip", "prunesid", "anchormerge", "tome"])
def test_the_contract_holds_around(base: str) -> None:
    check_contract(get_method("anchored", base=base, coordinates=0.2))


def test_stages_and_what_they_read() -> None:
    stages = get_method("anchored", base="vscan").stages(32, Budget(0.25))
    assert [(stage.where, stage.layer) for stage in stages] == [(Where.BEFORE_LLM, 0), (Where.INSIDE_LLM, 16)]
    assert [str(stage.budget) for stage in stages] == ["0.375", "0.125"]
    assert stages[1].method.needs == {Cue.ROTARY_MEANS, Cue.LLM_ATTENTION_HERE}
    assert get_method("anchored", base="fastv").places() == (Where.INSIDE_LLM,)
    edited = get_method("anchored", base="visipruner")
    assert edited.edits(32) == get_method("visipruner").edits(32) and edited.edits(32)


def test_how_many_is_counted_by_the_wrapped_method() -> None:
    tokens, inner = example(), get_method("sms", inside=False)
    method = get_method("anchored", base=inner)
    count = method.counts(tokens)
    assert method.counts_by_content and count is not None and torch.equal(count, inner.counts(tokens))  # type: ignore[arg-type]
    assert torch.equal(method.select(tokens, count).keep.sum(1), count)


def test_what_it_refuses() -> None:
    with pytest.raises(MethodError, match="pixelprune prunes before the vision encoder"):
        get_method("anchored", base="pixelprune")
    with pytest.raises(MethodError, match=r"divprune@encoder:1 prunes inside the vision encoder"):
        get_method("anchored", base=foveate.InEncoder("divprune", block=1))


@pytest.mark.parametrize("base", ["divprune", "fastv", AtLayer("divprune", 2)], ids=str)
def test_around_methods_elsewhere(qwen: Zoo, base: Any) -> None:
    inputs = pair(qwen)
    with foveate.prune(qwen.model, "anchored", keep=0.4, base=base) as pruning:
        cached = generate(qwen, inputs)
        image = pruning.report().images[0]
        assert gap(cached, generate(qwen, inputs, use_cache=False)) < 2e-5
    assert image.tokens == Budget(0.4).count(image.tokens_before)


def test_shortened_inputs_are_those_of_generate_whatever_the_padding(llava: Zoo) -> None:
    """Positions, by which coordinate tokens are told, begin behind the padding."""
    inputs = tiny_models.inputs(llava, [[tiny_models.picture(seed=1)]] * 2, ["a red square", "what is in the picture?"])
    assert not inputs["attention_mask"][0].all()
    with foveate.prune(llava.model, "anchored", coordinates=0.2, keep=0.4):
        hooked = generate(llava, inputs)
    short = foveate.prune_inputs(llava.model, inputs, "anchored", coordinates=0.2, keep=0.4)
    assert gap(hooked, generate(llava, short)) < 2e-5
