"""On a GPU nothing in a step waits for the device; shown on a CPU by tensors that cannot be looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import tiny_models
from emulated_device import DEVICE, HostWaits, OnDevice, emulated_device, on_device, on_host
from foveate import Budget
from foveate.devices import first_of_each, from_host, known_sizes, to_host
from foveate.models.adapter import AttentionCall
from foveate.models.registry import adapter_of
from foveate.serving.vllm.batch import (
    MethodCall,
    Question,
    Shortened,
    first_tokens,
    groups_of,
    shorten,
    shorten_safely,
)
from foveate.serving.vllm.faults import Faults
from foveate.serving.vllm.positions import distances_in_block, split_distances, with_distances
from foveate.tokens import Grid

from .served import WIDTH, cues_for, image, question_for, served_methods

METHODS = served_methods()
WAIT = {
    "agilepruner": "linalg_svdvals",
    "prunesid": "linalg_eigh",  # eigenvectors, and groups whose number depends on them
    "mmgvid": "unique_consecutive",  # segments whose number depends on what a clip shows
    "par": "equal",  # clusters whose number depends on what an image shows
}
GRIDS = [Grid(4, 4, 2), Grid(4, 4, 2), Grid(3, 5, 3)]  # one is padded


def _moved(question: Question | None) -> Question | None:
    return None if question is None else Question(on_device(question.embeddings), question.before)


@pytest.mark.parametrize("name", METHODS)
def test_no_served_method_waits(name: str) -> None:
    """And the path for GPUs keeps what the one for CPUs does."""
    method, images = METHODS[name], [image(grid, seed) for seed, grid in enumerate(GRIDS)]
    for budget in (Budget(20), Budget(0.6), Budget(10**9)):
        groups = [groups_of([grid], budget) for grid in GRIDS]
        rows, cues = [rows for rows, _ in images], cues_for(method, images)
        question = question_for(method, groups)
        expected = shorten(MethodCall(method, rows, groups, cues, WIDTH, question))
        with emulated_device():
            call = MethodCall(method, on_device(rows), groups, on_device(cues), WIDTH, _moved(question))
            if name in WAIT:
                with pytest.raises(HostWaits, match=WAIT[name]):
                    shorten(call, Faults())
                continue
            found = shorten(call, Faults())
            for one, grid in zip(found, GRIDS, strict=True):
                with_distances(one.rows, distances_in_block(one.index, grid, 1.5))
        for one, other in zip(found, expected, strict=True):
            assert isinstance(one.rows, OnDevice)
            assert torch.equal(on_host(one.index), other.index)
            assert torch.allclose(on_host(one.rows), other.rows, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in WAIT])
def test_no_served_method_waits_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    """And in float32 it keeps there what it keeps on a CPU."""
    method, images = METHODS[name], [image(grid, seed, dtype) for seed, grid in enumerate(GRIDS)]
    groups = [groups_of([grid], Budget(0.6)) for grid in GRIDS]
    question = question_for(method, groups, dtype)
    rows, cues = [rows for rows, _ in images], cues_for(method, images)
    expected = shorten(MethodCall(method, rows, groups, cues, WIDTH, question))
    there = tree_map(lambda one: one.cuda(), (rows, cues))
    if question is not None:
        question = Question(question.embeddings.cuda(), question.before)

    call = MethodCall(method, there[0], groups, there[1], WIDTH, question)

    def run() -> list[Shortened]:
        return shorten(call, Faults())

    run()  # kernels are compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other, again in zip(found, expected, run(), strict=True):
        assert one.index.equal(again.index)
        torch.testing.assert_close(one.rows, again.rows)  # a GPU adds up what is merged in any order
        assert one.rows.shape == other.rows.shape and bool(one.rows.isfinite().all())
        if dtype == torch.float32:
            assert one.index.cpu().equal(other.index)


@pytest.mark.parametrize("name", METHODS)
def test_no_device_assertion_is_possible_where_numbers_are_not_finite(name: str) -> None:
    """The emulated device makes its assertions at once, and would raise them."""
    method, images = METHODS[name], [image(grid, seed) for seed, grid in enumerate(GRIDS)]
    for read in (images[1][0], *images[1][1].values()):
        read.fill_(torch.nan)
    groups, faults = [groups_of([grid], Budget(0.6)) for grid in GRIDS], Faults()
    with emulated_device():
        rows, cues = on_device([rows for rows, _ in images]), on_device(cues_for(method, images))
        call = MethodCall(method, rows, groups, cues, WIDTH, _moved(question_for(method, groups)))
        found = shorten_safely(call, faults)
    if name not in WAIT:
        assert faults.failed == 0
        assert on_host(found[1].index).tolist() == list(range(Budget(0.6).count(32)))


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_reading_the_encoder_waits_for_nothing(name: str) -> None:
    """From queries and keys, and from features, to the cues of each image."""
    adapter = adapter_of(getattr(tiny_models, name)().model)
    square = adapter.grids({"pixel_values": torch.zeros(2, 3, 56, 56)}) if name in ("llava", "internvl") else {}
    grids = square.get("image", [Grid(4, 6), Grid(2, 4)])
    patches, random = [adapter.patches(grid) for grid in grids], torch.Generator().manual_seed(0)
    if square:
        query, key = (torch.randn(2, 2, patches[0], 4, generator=random) for _ in "qk")
        calls = [AttentionCall(query, key, 0.5)]
        hidden = torch.randn(2, len(grids[0]), 16, generator=random)
    else:
        pairs = [[torch.randn(1, 2, n, 4, generator=random) for _ in "qk"] for n in patches]
        calls = [AttentionCall(query, key, 0.5) for query, key in pairs]
        hidden = torch.randn(sum(patches), 16, generator=random)
    expected = [adapter.encoder_attention(calls, grids), adapter.encoder_features(hidden, grids)]
    with emulated_device():
        there = [AttentionCall(on_device(one.query), on_device(one.key), one.scaling) for one in calls]
        found = [adapter.encoder_attention(there, grids), adapter.encoder_features(on_device(hidden), grids)]
    for one, other in zip(found, expected, strict=True):
        assert [len(read) for read in other] == [len(grid) for grid in grids]
        for read, known in zip(one, other, strict=True):
            assert isinstance(read, OnDevice) and torch.allclose(on_host(read), known, atol=1e-5)


def test_first_tokens_wait_for_nothing() -> None:
    rows, _ = image(GRIDS[0], 0)
    with emulated_device():
        found = first_tokens(on_device(rows), groups_of([GRIDS[0]], Budget(3, "frame")))
        split_distances(with_distances(found.rows, distances_in_block(found.index, GRIDS[0], 1.0)))
    assert on_host(found.index).tolist() == [0, 1, 2, 16, 17, 18]


def test_what_the_host_knows_is_not_asked_of_the_device() -> None:
    with emulated_device():
        counts, mask = from_host([3, 1], DEVICE), first_of_each([2, 3], 4, DEVICE)
        assert isinstance(counts, OnDevice) and to_host(counts) == [3, 1] and known_sizes(mask) == (2, 3)
        with pytest.raises(HostWaits):
            to_host(counts + 0)
        assert known_sizes(mask & mask) is None


X = torch.arange(6.0)


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: int(x[0]),
        lambda x: float(x[0]),
        lambda x: x[x > 2],
        lambda x: (x > 2).nonzero(),
        lambda x: x.unique(),
        lambda x: x.__setitem__(x > 2, x[:3]),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: X.to(x.device),
        lambda x: torch.tensor([1], device=x.device),
        lambda x: torch.equal(x, x),
        lambda x: X.copy_(x),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x.__setitem__(x.argsort()[:2], 1.0),
        lambda x: x.__setitem__(x.argmax(), 1.0),
        lambda x: x.__setitem__(x.argsort()[:2], X[0]),
        lambda x: x.view(2, 3).__setitem__((0, x.view(2, 3)[0].argsort()[:2]), 1.0),
        lambda x: x.index_put_((x.argsort()[:2],), X[0]),
        lambda x: x[x.argmax()],
        lambda x: x.view(2, 3)[:, x[:3].argmax()],
        lambda x: x[[1, 2]],
        lambda x: x[torch.tensor([1, 2])],
        lambda x: x[: x.argmax()],
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.as_tensor([1], device=x.device),
    ],
)
def test_the_emulated_device_sees_who_waits(waits: Callable[[Tensor], Any]) -> None:
    with emulated_device(), pytest.raises(HostWaits):
        waits(on_device(X.clone()))


@pytest.mark.parametrize(
    "works",
    [
        lambda x: x.sum() + 1,
        lambda x: x[x.argsort()[:2]],
        lambda x: torch.where(x > 2, x, 0),
        lambda x: X.to(x.device, non_blocking=True) + x,
        lambda x: torch.zeros(6, device=x.device) + x,
        lambda x: x.new_zeros(6).masked_fill_(x > 2, 1),
        lambda x: torch.zeros(6).copy_(x, non_blocking=True),
        lambda x: x.split([2, 4]),
        lambda x: x.__setitem__(0, 1.0),
        lambda x: x.__setitem__(slice(2), 1.0),
        lambda x: x.__setitem__(x.argsort()[:2], x[:2] + 1),
        lambda x: x.index_fill_(0, x.argsort()[:2], 1.0),
        lambda x: x.index_fill_(0, x.argmax(), 1.0),
        lambda x: x.index_select(0, x.argmax()),
    ],
)
def test_the_emulated_device_lets_others_work(works: Callable[[Tensor], Any]) -> None:
    with emulated_device():
        works(on_device(X.clone()))


def test_the_emulated_device_does_not_mix() -> None:
    with emulated_device(), pytest.raises(AssertionError, match="mixes"):
        on_device(X) + X
