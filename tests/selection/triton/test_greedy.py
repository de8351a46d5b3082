"""The path for GPUs, on a CPU: tensors that say they are on a GPU, and kernels that Triton interprets.

The interpreter has to be chosen before Triton is imported, so the comparison runs in a process of its own.
"""

from unittest import mock

import pytest
import torch

from triton_interpreter import interpreted

pytest.importorskip("triton")

# Batch, width, depth, how often each token is repeated.
CASES = ((1, 1, 4, 1), (1, 7, 4, 1), (3, 64, 16, 1), (4, 65, 24, 3), (2, 130, 8, 10), (3, 96, 5, 1))
# Triton's interpreter takes the bits of bfloat16 for whole numbers when it multiplies, so 16 bits are float16 here.
HALVES = tuple((case, torch.float16) for case in ((3, 64, 16, 1), (2, 130, 70, 1), (1, 65, 24, 1)))


def waits(*args, **kwargs):
    raise AssertionError("the host waited for the device")


class OnDevice(torch.Tensor):
    """A tensor that takes itself for one on a GPU, and does not let the host look at its numbers."""

    is_cuda, is_cpu = True, False
    __bool__ = __int__ = __float__ = __index__ = item = tolist = numpy = cpu = waits

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        by_mask = name in ("__getitem__", "__setitem__") and getattr(args[1], "dtype", None) == torch.bool
        if by_mask or name in ("nonzero", "masked_select", "unique", "equal", "repeat_interleave"):
            waits()
        return super().__torch_function__(func, types, args, kwargs or {})


def on_device(op):
    """A fused op that takes such tensors, and gives one."""

    def call(*arguments):
        plain = [a.as_subclass(torch.Tensor) if isinstance(a, OnDevice) else a for a in arguments]
        return op(*plain).as_subclass(OnDevice)

    return call


def scene(batch, width, depth, copies):
    """Features, scores, counts and valid tokens: one row of which all is kept, and one without any."""
    generator = torch.Generator().manual_seed(width)
    distinct = -(-width // copies)
    x = torch.randn(batch, distinct, depth, generator=generator).repeat(1, copies, 1)[:, :width]
    w = torch.rand(batch, distinct, generator=generator).repeat(1, copies)[:, :width]
    valid = torch.rand(batch, width, generator=generator) > 0.2
    valid[:, 0] = True
    counts = (valid.sum(-1) // (2 * copies)).clamp_min(1)
    if copies == 1:
        counts[-1] = valid[-1].sum()
    if batch > 2:
        valid[0], counts[0] = False, 0
    return x.masked_fill(~valid[..., None], torch.nan), w, counts, valid


def selectors(width):
    from foveate.selection import coverage, dpp, independent_set, maxmin, mmr

    places = torch.stack([torch.arange(width) * 0, torch.arange(width) // 8, torch.arange(width) % 8], -1)
    return {
        "mmr": lambda x, w, k, valid: mmr(x, w, k, 0.5, valid),
        "mmr, importance alone": lambda x, w, k, valid: mmr(x, w, k, 1.0, valid),
        "maxmin": lambda x, w, k, valid: maxmin(x, k, valid),
        "coverage": lambda x, w, k, valid: coverage(x, w, k, 0.5, valid),
        "dpp": dpp,
        "independent_set": lambda x, w, k, valid: independent_set(x, w, k, places, 0.3, 0.3, 0.2, valid, True),
        "pivots alone": lambda x, w, k, valid: independent_set(x, w, k, places, 1.0, 0.3, 0.0, valid),
    }


def compare():
    from foveate.selection.triton import greedy as gpu

    ops = {
        name: getattr(gpu, name)
        for name in ("gram", "greedy_mmr", "greedy_maxmin", "greedy_independent_set", "greedy_coverage", "greedy_dpp")
    }
    used = {name: mock.Mock(side_effect=on_device(op)) for name, op in ops.items()}
    for case, dtype in (*((case, torch.float32) for case in CASES), *HALVES):
        x, w, counts, valid = scene(*case)
        x = x.to(dtype)
        there = [tensor.as_subclass(OnDevice) for tensor in (x, w, valid)]
        for name, select in selectors(case[1]).items():
            with mock.patch.multiple(gpu, **used):
                keep = select(there[0], there[1], counts, there[2]).as_subclass(torch.Tensor)
            assert keep.sum(-1).equal(counts) and not (keep & ~valid).any(), (case, name)
            assert keep.equal(select(x, w, counts, valid)), (case, name)
    assert all(op.called for op in used.values())
    cosines, weight = torch.rand(2, 9, 9), torch.rand(2, 9)
    counts, valid = torch.tensor([3, 5]), torch.ones(2, 9, dtype=torch.bool)
    for name, arguments in {
        "gram": (cosines.half(), weight, valid),
        "greedy_mmr": (cosines, weight, counts, counts, 0.5),
        "greedy_maxmin": (cosines, valid, counts),
        "greedy_independent_set": (cosines > 0.5, weight.argsort(-1).int(), counts),
        "greedy_coverage": (cosines, weight, cosines.sum(-1), counts),
        "greedy_dpp": (cosines, weight, torch.ones_like(weight), valid, counts, 3),
    }.items():
        torch.library.opcheck(getattr(torch.ops.foveate, name).default, arguments)
    print("compared")


@pytest.mark.kernels
def test_interpreted_kernels_equal_the_path_for_cpus():
    done = interpreted(__file__)
    assert done.returncode == 0 and "compared" in done.stdout, done.stderr


if __name__ == "__main__":
    compare()
