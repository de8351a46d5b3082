"""How many operations a selection on a GPU makes: at a few hundred tokens the host's launches take most of its time."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emulated_device import emulated_device, on_device
from foveate.selection import dpp, maxmin, mmr

_FREE = ("view", "reshape", "detach", "select", "slice", "unsqueeze", "alias", "empty", "new_empty")  # launch nothing


class _Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in _FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


KERNELS = SimpleNamespace(
    gram=lambda features, inverse, valid: inverse.new_empty(*inverse.shape, inverse.shape[1]),
    greedy_mmr=lambda cosines, bonus, *rest: bonus.view(torch.int32),
    greedy_maxmin=lambda cosines, valid, *rest: valid.view(valid.shape),
    greedy_dpp=lambda cosines, relevance, *rest: relevance.view(torch.int32),
)


# Operations of torch; `gram` and the kernel, of which max-min has two, come on top.
@pytest.mark.parametrize(
    ("select", "most"),
    [(lambda x, w: mmr(x, w, 3), 20), (lambda x, w: maxmin(x, 3), 9), (lambda x, w: dpp(x, w, 3), 24)],
    ids=["mmr", "maxmin", "dpp"],
)
@pytest.mark.parametrize("batch", [(), (4,)], ids=str)
def test_a_selection_makes_few_launches(select, most, batch):
    x, w = on_device((torch.randn(*batch, 8, 4).bfloat16(), torch.rand(*batch, 8)))
    with emulated_device(), mock.patch("foveate.devices._import", lambda _: KERNELS), _Launches() as seen:
        select(x, w)
    assert 0 < len(seen.names) <= most, seen.names
