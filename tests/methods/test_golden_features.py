"""Methods that read features or pixels alone beside the authors' released code: ToMe, EVS, VidCom2, PixelPrune."""

import numpy as np
import pytest
import torch

from foveate.methods import get_method
from foveate.tokens import VisualTokens
from methods.example_tokens import chosen, kept
from methods.golden import cases, facts


def shown(case, name="features"):
    return VisualTokens.of(case.tensor(name), case.grid)


@pytest.mark.parametrize("case", cases("tome", "any"))
def test_tome(case):
    selection = chosen(get_method("tome").bind(facts(case.kind)), shown(case), case.count)
    assert selection.keep[0].nonzero()[:, 0].tolist() == case.kept
    assert selection.target[0].tolist() == case.result["target"].tolist()
    merged = selection.merged(shown(case).features)[0, selection.keep[0]]
    torch.testing.assert_close(merged, torch.from_numpy(case.result["merged"]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", cases("evs", "qwen2.5-vl"))
def test_evs(case):
    assert kept(get_method("evs").bind(facts(case.kind)), shown(case), case.count) == case.kept


@pytest.mark.parametrize("case", cases("vidcom2", "qwen2.5-vl"))
def test_vidcom2(case):
    found = kept(get_method("vidcom2").bind(facts(case.kind)), shown(case), case.count)
    assert found == case.kept
    per_frame = np.bincount(np.array(found) // len(case.grid.frame), minlength=case.grid.frames)
    assert per_frame.tolist() == case.result["frame_counts"].tolist()


@pytest.mark.parametrize("case", cases("pixelprune", "qwen3-vl"))
def test_pixelprune(case):
    measure = ("max", "mean", "rms")[int(case.settings["difference"])]
    settings = {"tolerance": float(case.settings["tolerance"]), "difference": measure}
    method = get_method("pixelprune", **settings).bind(facts(case.kind))
    counts = method.counts(shown(case, "pixels"))
    assert counts.tolist() == [case.count]
    assert method.select(shown(case, "pixels"), counts).keep[0].nonzero()[:, 0].tolist() == case.kept
