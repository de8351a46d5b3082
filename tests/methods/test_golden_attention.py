"""Methods that rank by the encoder's attention beside the authors' released code: HoloV, HiPrune, VisionZip, ..."""

import numpy as np
import pytest
import torch

from foveate.methods import ModelFacts, get_method
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import chosen, kept
from methods.golden import cases, facts

# Where a case cannot be met index for index: what holds in its place is tested below.
DEVIATES = {
    "holov": "a full chunk's surplus is rows of zeros in the released code; here other chunks get it, and K are kept",
}


def bound(case, name=None, **settings):
    return get_method(name or case.method, **settings).bind(facts(case.kind))


@pytest.mark.parametrize("case", cases("fastervlm", "llava"))
def test_fastervlm(case):
    attention = case.tensor("attention").mean(0)
    tokens = VisualTokens.of(torch.zeros(len(attention), 2), case.grid, encoder_attention=attention)
    assert kept(bound(case), tokens, case.count) == case.kept


@pytest.mark.parametrize("case", cases("vispruner", "llava"))
def test_vispruner(case):
    features, attention = case.tensor("encoder_features"), case.tensor("attention").mean(0)
    tokens = VisualTokens.of(features, case.grid, encoder_attention=attention, encoder_features=features)
    method = bound(case, important=float(case.settings["important"]))
    assert method == bound(case)
    assert kept(method, tokens, case.count) == case.kept


@pytest.mark.parametrize("case", [*cases("hiprune", "llava"), *cases("hiprune", "qwen2.5-vl")])
def test_hiprune(case):
    readings = torch.stack([case.tensor("middle"), case.tensor("last")], -1)
    tokens = VisualTokens.of(torch.zeros(len(readings), 2), case.grid, encoder_readings=readings)
    assert kept(bound(case, anchors=float(case.settings["alpha"])), tokens, case.count) == case.kept


@pytest.mark.parametrize("case", [*cases("holov", "llava"), *cases("holov", "qwen2.5-vl")])
def test_holov(case):
    attention = case.tensor("attention")
    tokens = VisualTokens.of(torch.zeros(len(attention), 2), case.grid, encoder_attention=attention)
    found = kept(bound(case), tokens, case.count)
    chunks = int(case.settings["chunks"])
    part = np.repeat(np.arange(chunks), [len(run) for run in np.array_split(np.arange(len(attention)), chunks)])
    sizes, given = np.bincount(part[found], minlength=chunks), case.result["chunk_counts"]
    assert len(found) == case.count
    surplus = int(case.result["zero_rows"])
    if not surplus:
        assert found == case.kept and sizes.tolist() == given.tolist()
        return
    assert case.method in DEVIATES
    held = np.bincount(part, minlength=chunks)
    assert set(case.kept) < set(found) and len(found) - len(case.kept) == surplus
    assert (sizes >= np.minimum(given, held)).all()
    for chunk in range(chunks):
        inside = np.flatnonzero(part == chunk)
        best = inside[attention.numpy()[inside].argsort()[::-1][: sizes[chunk]]]
        assert sorted(best.tolist()) == [i for i in found if part[i] == chunk]


def test_holov_has_as_many_chunks_as_the_budget_asks_for_on_qwen():
    # 1024 / 576 * 576 / 144 is 7.1, and for 57 tokens 17.96.
    attention = torch.arange(576.0)
    tokens = VisualTokens.of(torch.zeros(576, 2), Grid(24, 24), encoder_attention=attention)
    method = get_method("holov").bind(ModelFacts("", 8, 4, ("qwen2_5_vl", "qwen2_vl")))
    for count, chunks in ((144, 7), (57, 17)):
        assert kept(method, tokens, count) == kept(get_method("holov", chunks=chunks), tokens, count)
    both = VisualTokens(torch.zeros(2, 576, 2), ((Grid(24, 24),),) * 2, encoder_attention=attention.expand(2, -1))
    rows = method.select(both, torch.tensor([144, 57])).keep
    assert [row.nonzero()[:, 0].tolist() for row in rows] == [kept(method, tokens, n) for n in (144, 57)]


@pytest.mark.parametrize("case", [*cases("visionzip", "llava"), *cases("visionzip", "qwen2.5-vl")])
def test_visionzip(case):
    # The released code compares keys and merges, on LLaVA, before the projector.
    features = case.tensor("encoder_features" if case.kind == "llava" else "features")
    cues = {"encoder_attention": case.tensor("attention"), "encoder_features": case.tensor("keys")}
    selection = chosen(bound(case), VisualTokens.of(features, case.grid, **cues), case.count)
    assert selection.keep[0].nonzero()[:, 0].tolist() == case.kept
    assert selection.target[0].tolist() == case.result["target"].tolist()
    merged = selection.merged(features[None])[0]
    expected = torch.from_numpy(case.result["merged"])
    torch.testing.assert_close(merged[case.result["contextual"].tolist()], expected, atol=1e-4, rtol=1e-4)
    dominant = case.result["dominant"].tolist()
    assert torch.equal(merged[dominant], features[dominant])


@pytest.mark.parametrize(("count", "contextual"), [(324, 64), (65, 64), (64, 63), (1, 0)])
def test_visionzip_has_a_share_of_the_whole_image_on_qwen(count, contextual):
    features = torch.randn(1296, 4, generator=torch.Generator().manual_seed(0))
    attention = torch.rand(1296, generator=torch.Generator().manual_seed(1))
    cues = {"encoder_attention": attention, "encoder_features": features}
    method = get_method("visionzip").bind(ModelFacts("", 8, 4, ("qwen2_5_vl", "qwen2_vl")))
    selection = chosen(method, VisualTokens.of(features, Grid(36, 36), **cues), count)
    merged = selection.merged(features[None])[0]
    changed = (merged != features).any(1) & selection.keep[0]
    assert selection.keep.sum() == count and int(changed.sum()) <= contextual
    assert bool(selection.keep[0, attention.topk(count - contextual).indices].all())
    joined = selection.target[0][~selection.keep[0]].unique()
    assert len(joined[joined >= 0]) == int(changed.sum()) and (contextual == 0) == (int(changed.sum()) == 0)


def test_visionzip_merges_into_one_token_of_a_small_image():
    features, attention = torch.eye(6), torch.arange(6.0)
    tokens = VisualTokens.of(features, Grid(2, 3), encoder_attention=attention, encoder_features=features)
    selection = chosen(get_method("visionzip").bind(facts("qwen2.5-vl")), tokens, 3)
    assert selection.keep[0].nonzero()[:, 0].tolist() == [0, 4, 5]  # max(1, int(0.05 * 6)) of all 6
    assert selection.target[0].tolist() == [0, 0, 0, 0, 4, 5]
