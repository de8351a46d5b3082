"""Choosing does not make the host wait for a GPU, but where what comes next depends on numbers; shown on a CPU."""

import pytest
import torch

from emulated_device import DEVICE, HostWaits, emulated_device, on_device, on_host
from foveate.devices import from_host
from foveate.grouping import select
from foveate.tokens import VisualTokens

from .test_contract import CHOICES, CLIPS, CLIPS_ONLY, POOLS, batch, make

TEXT = "the length of each prompt's text, which padding hides"
WAIT = {
    "adatp": TEXT,
    "agilepruner": "singular values, unless it is given an effective rank",
    "cdpruner": TEXT,
    "dart": TEXT,
    "eadp": TEXT,
    "fastmmoe": "the number of groups, and the counts, which it reads back",
    "flashvid": "the number of segments, which depends on what a clip shows",
    "ivcprune": TEXT,
    "litelvlm": TEXT,
    "mmgvid": "the number of segments, which depends on what a clip shows",
    "mmtok": TEXT,
    "nuwa": "the number of regions, which depends on which tokens are left",
    "par": TEXT,
    "prunesid": "eigenvectors, and the number of groups",
    "sms, inside": TEXT,
    "sparsevlm": TEXT,
    "trim": TEXT,
    "vscan": "the number of windows, which depends on which tokens are left",
}


@pytest.mark.parametrize("name", CHOICES)
def test_no_method_waits_without_a_reason(name):
    """And what a GPU runs chooses what a CPU does."""
    method = make(name)
    tokens = batch(CLIPS if name in CLIPS_ONLY else POOLS, method)
    expected = method.select(tokens, torch.tensor([6, 5, 3])).keep
    with emulated_device():
        masks = {"text_valid": on_device(tokens.text_valid), "text_follows": on_device(tokens.text_follows)}
        there = VisualTokens(on_device(tokens.features), tokens.grids, on_device(dict(tokens.cues)), **masks)
        count = from_host([6, 5, 3], DEVICE)
        if name in WAIT:
            with pytest.raises(HostWaits):
                select(method, there, count, checked=False)
            return
        found = select(method, there, count, checked=False).keep
    assert torch.equal(on_host(found), expected)
