"""The launch for attention rows: on a CPU as Triton interprets it, in a process of its own, and on a GPU where there is
one (`PYTHONPATH=src python -m pytest -m gpu tests/importance`)."""

import pytest
import torch

from foveate.importance import attention_received, attention_row
from foveate.importance.attention import attention_weights
from triton_interpreter import interpreted

pytest.importorskip("triton")

# Sequences, query heads, key heads, keys, width of a head, room beside the keys in their cache.
CASES = ((1, 1, 1, 1, 4, 0), (2, 4, 2, 65, 8, 0), (2, 6, 2, 130, 24, 7), (3, 4, 4, 64, 16, 3))


def scene(case, device="cpu", dtype=torch.float32):
    """A query, keys that are a view of a cache laid out by token, and which of them it may see."""
    batch, heads, kv_heads, length, depth, room = case
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(batch, heads, depth, generator=generator).to(device, dtype)
    cache = torch.full((batch, length + room, kv_heads, depth), torch.nan)
    cache[:, :length] = torch.randn(batch, length, kv_heads, depth, generator=generator)
    visible = torch.rand(batch, length, generator=generator) > 0.3
    visible[:, 0] = True
    return query, cache.to(device, dtype).transpose(1, 2)[:, :, :length], visible.to(device)


def rows(query, key, visible):
    """The same by the weights of all heads, in torch."""
    return attention_weights(query[:, :, None], key, 0.3, visible[:, None])[:, :, 0].mean(1)


def compare():
    from foveate.importance.attention_triton import attention_logits

    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            query, key, visible = scene(case, dtype=dtype)
            logits = attention_logits(query, key, 0.3).masked_fill(~visible[:, None], -torch.inf)
            torch.testing.assert_close(logits.softmax(-1).mean(1), rows(query, key, visible))
    by_depth = torch.randn(2, 2, 8, 9).mT  # its last dimension is not the fastest
    query = torch.randn(2, 4, 8)
    torch.testing.assert_close(attention_logits(query, by_depth, 1.0), attention_logits(query, by_depth.clone(), 1.0))
    assert attention_logits(query, by_depth[:, :, :0], 1.0).shape == (2, 4, 0)
    torch.library.opcheck(attention_logits, (query, by_depth, 1.0))
    compare_shares()
    print("compared")


# Images, query heads, key heads, queries, keys, width of a head.
RECEIVED = ((1, 1, 1, 1, 1, 4), (2, 4, 2, 65, 70, 24), (1, 2, 2, 130, 130, 80), (1, 2, 1, 3, 200, 16))


def packed(case, device="cpu", dtype=torch.float16):
    """Queries and keys as they are split off one product, laid out by token."""
    images, heads, kv_heads, queries, keys, depth = case
    generator = torch.Generator().manual_seed(keys)
    query = torch.randn(images, queries, heads, depth, generator=generator).to(device, dtype)
    key = torch.randn(images, keys, kv_heads, depth, generator=generator).to(device, dtype)
    return query.transpose(1, 2), key.transpose(1, 2)


def received(query, key):
    """The same in torch, by explicit softmax."""
    keys = key.float().repeat_interleave(query.shape[1] // key.shape[1], 1)
    return (query.float() @ keys.mT * 0.3).softmax(-1).mean((1, 2))


def compare_shares():
    from foveate.importance.attention_triton import attention_shares

    for case in RECEIVED:  # the interpreter multiplies bfloat16 wrongly
        query, key = packed(case)
        found = attention_shares(query, key, 0.3).mean(1) / query.shape[2]
        torch.testing.assert_close(found, received(query, key))
    torch.library.opcheck(torch.ops.foveate.attention_shares.default, (query, key, 0.3))


@pytest.mark.slow
@pytest.mark.kernels
def test_the_interpreted_launch_equals_torch():
    done = interpreted(__file__)
    assert done.returncode == 0 and "compared" in done.stdout, done.stderr


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("case", [*CASES, (8, 28, 4, 1328, 128, 100)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(case, dtype):
    query, key, visible = scene(case, "cuda", dtype)
    row = attention_row(query, key, 0.3, visible)
    torch.testing.assert_close(row, rows(query, key, visible))
    assert row.equal(attention_row(query, key, 0.3, visible))


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("case", [*RECEIVED, (1, 16, 16, 5184, 5184, 80), (4, 8, 2, 577, 600, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_received_on_a_gpu(case, dtype):
    query, key = packed(case, "cuda", dtype)
    found = attention_received(query, key, 0.3)
    torch.testing.assert_close(found, received(query, key), rtol=1e-4, atol=1e-8)
    assert found.equal(attention_received(query, key, 0.3))


@pytest.mark.gpu
@on_a_gpu
def test_no_wait_and_cuda_graphs():
    query, key, visible = scene((3, 8, 2, 300, 64, 5), "cuda", torch.bfloat16)
    expected = attention_row(query, key, 0.3, visible)  # the kernel is compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention_row(query, key, 0.3, visible)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        row = attention_row(query, key, 0.3, visible)
    graph.replay()
    assert row.equal(expected)
    query.mul_(2)
    graph.replay()
    assert row.equal(attention_row(query, key, 0.3, visible)) and not row.equal(expected)


if __name__ == "__main__":
    compare()
