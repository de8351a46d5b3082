"""What runs row by row on a CPU runs on a GPU as one padded batch: both give the same."""

import pytest
import torch

from foveate.methods import get_method
from foveate.selection.batch import prepare_batch


@pytest.mark.parametrize("name", ["dart", "holov", "idselection", "prunesid", "tops", "vispruner"])
def test_a_padded_batch_at_once(name):
    generator = torch.Generator().manual_seed(3)
    features, scores = torch.randn(4, 30, 6, generator=generator), torch.rand(4, 30, generator=generator)
    valid = torch.rand(4, 30, generator=generator) < torch.tensor([[1.1], [0.8], [0.5], [0.3]])
    count = (valid.sum(1) // torch.tensor([2, 3, 1, 4])).clamp_min(1)
    batch = prepare_batch(count, valid, features=features, scores=scores)
    core = get_method(name)._keep
    assert torch.equal(core(batch), batch.select(core))
