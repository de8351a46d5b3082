"""SparseVLM against the authors' code: one stage of version 2.0, one of version 1.5, and the published lists."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from foveate.errors import MethodError
from foveate.methods import get_method, sparsevlm
from foveate.methods.sparsevlm import count_unrecycled, raters_of
from foveate.tokens import Grid, VisualTokens
from methods.golden import Case, cases, extra, facts

VERSION_1 = {"unbias": False, "heads": 1.0, "recycle": True}


def tokens_of(case: Case) -> VisualTokens:
    visual, text, attention = case.tensor("visual"), case.tensor("text"), case.tensor("attention")
    decay = case.tensor("decay").T if "decay" in case.given else None
    return VisualTokens.of(
        case.tensor("hidden") if "hidden" in case.given else visual,
        Grid(1, len(visual)),
        input_embeddings=visual,
        text_embeddings=text,
        text_follows=torch.ones(len(text), dtype=torch.bool),
        llm_text_attention=attention.permute(2, 0, 1),
        rotary_decay=decay,
    )


@pytest.mark.parametrize("case", cases("sparsevlm", "llava-v2"))
def test_a_stage_of_version_2(case: Case) -> None:
    method, tokens = get_method("sparsevlm").bind(facts(case.kind)), tokens_of(case)
    raters = raters_of(tokens.input_embeddings[0], tokens.text_embeddings[0])
    assert raters.nonzero()[:, 0].tolist() == case.result["raters"].tolist()
    keep = method.select(tokens, torch.tensor([case.count])).keep[0]
    assert keep.nonzero()[:, 0].tolist() == case.kept
    # The release leaves the attention's scale in its ratings.
    scaled = method.ratings(tokens)[0] / float(case.settings["head_dim"]) ** 0.5
    torch.testing.assert_close(scaled, torch.from_numpy(case.result["rating"]), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", cases("sparsevlm", "llava-v1"))
def test_a_stage_of_version_1(case: Case) -> None:
    result, top = case.result, int(case.settings["top"])
    groups = "fewest" if count_unrecycled(len(case.given["visual"]), case.count) == top else "most"
    method, tokens = get_method("sparsevlm", **VERSION_1, groups=groups).bind(facts(case.kind)), tokens_of(case)
    selection = method.select(tokens, torch.tensor([case.count]))
    centres, recycled = result["centres"].tolist(), result["recycled"].tolist()
    assert selection.keep[0].nonzero()[:, 0].tolist() == sorted(case.kept + centres)
    assert selection.target is not None
    assert selection.target[0, recycled].tolist() == [centres[c] for c in result["cluster"].tolist()]
    merged = selection.merged(tokens.features)[0]
    torch.testing.assert_close(merged[centres], torch.from_numpy(result["merged"]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(merged[case.kept], tokens.features[0, case.kept])


def test_the_lists_of_version_1() -> None:
    lists = extra("sparsevlm", "llava-v1", "lists")
    assert lists.result["left"].tolist() == [[309, 204, 113], [312, 117, 39], [249, 55, 27], [82, 32, 18]]
    for tops, left in zip(lists.given["top"].tolist(), lists.result["left"].tolist(), strict=True):
        assert [count_unrecycled(n, k) for n, k in pairwise([576, *left])] == tops
        assert str(tuple(left)) in str(sparsevlm.__doc__)  # the page names them


def test_two_splits_of_one_count() -> None:
    assert (count_unrecycled(121, 28), count_unrecycled(121, 28, most=True)) == (25, 24)


def test_fourteen_heads_whatever_their_number() -> None:
    attention = torch.zeros(4, 32, 1)
    attention[:, :14] = 0.5
    attention[0, :14] = 0.6
    attention[1, 14:16] = 1.9
    attention[2:, 16:] = 0.01
    cues: Any = {"input_embeddings": torch.ones(4, 2), "text_embeddings": torch.ones(1, 2)}
    cues |= {"text_follows": torch.tensor([True]), "rotary_decay": torch.ones(4, 1)}

    def ratings(there: int, **fields: Any) -> list[float]:
        tokens = VisualTokens.of(torch.ones(4, 2), Grid(1, 4), llm_text_attention=attention[:, :there], **cues)
        return [round(rating, 6) for rating in get_method("sparsevlm", **fields).ratings(tokens)[0].tolist()]

    assert ratings(32) == [0.6, 0.5, 0.5, 0.5]
    assert ratings(8) == ratings(8, heads=1.0) == [0.6, 0.5, 0.5, 0.5]
    assert ratings(32, heads=0.5) == ratings(32, heads=16) == [0.525, 0.675, 0.4375, 0.4375]
    for wrong in (0, -1, 2.5, True, float("nan")):
        with pytest.raises(MethodError, match="must be in"):
            get_method("sparsevlm", heads=wrong)
