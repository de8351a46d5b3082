"""The Triton kernels, run by Triton's interpreter on a CPU, against the reference.

The interpreter has to be chosen before Triton is imported, so the comparison runs in a process of its own.
"""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.slow


def compare():
    from foveate.selection._greedy import spread as reference
    from foveate.selection.cosine import Cosines
    from foveate.selection.kernels import gpu
    from foveate.selection.pools import prepare

    generator = torch.Generator().manual_seed(0)
    for batch, width, depth, copies in ((1, 1, 4, 1), (1, 7, 4, 1), (3, 64, 16, 1), (2, 65, 24, 3), (2, 130, 8, 10)):
        x = torch.randn(batch, -(-width // copies), depth, generator=generator).repeat(1, copies, 1)[:, :width]
        valid = torch.rand(batch, width, generator=generator) > 0.2
        valid[:, 0] = True
        counts = (valid.sum(-1) // (2 * copies)).clamp_min(1)
        bonus = torch.rand(batch, width, generator=generator)
        pools = prepare(counts, valid, features=x.masked_fill(~valid[..., None], 0), scores=bonus)
        cosines = Cosines(pools.unit())
        first = bonus.masked_fill(~valid, -torch.inf).argmax(-1)
        for extra, penalty in ((bonus, 0.5), (torch.ones_like(bonus), 1.0), (bonus, 0.0)):
            barred = extra.masked_fill(~valid, -torch.inf)
            keep = torch.ops.foveate.spread(cosines.matrix, barred, first, pools.counts, penalty)
            assert keep.equal(reference(pools, cosines, first, extra, penalty)), (batch, width, penalty)
            assert keep.sum(-1).equal(counts)

        edges = (cosines.matrix > 0.3).contiguous()
        rank = bonus.argsort(-1, descending=True).argsort(-1).int().masked_fill(~valid, 3 * width)
        taken = torch.ops.foveate.suppress(edges, rank, counts)
        for row in range(batch):
            order = [i for i in rank[row].argsort(stable=True).tolist() if valid[row, i]]
            left, picked = list(order), []
            while len(picked) < counts[row]:
                source = left or [i for i in order if i not in picked]
                picked.append(source[0])
                left = [i for i in left if i != source[0] and not edges[row, source[0], i]]
            assert sorted(picked) == taken[row].nonzero()[:, 0].tolist(), (batch, width)
    args = (cosines.matrix, bonus, first, counts, 0.5)
    torch.library.opcheck(gpu.spread, args, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(gpu.suppress, (edges, rank, counts), test_utils=("test_schema", "test_faketensor"))
    print("compared")


def test_interpreted_kernels_equal_the_reference():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "compared" in done.stdout, done.stderr


if __name__ == "__main__":
    compare()
