"""Encoded images that are kept: bounded, the least recently used goes first, and nothing is given that lacks a cue."""

from __future__ import annotations

import torch

from foveate.serving.vllm.feature_cache import Encoded, FeatureCache
from foveate.tokens import Cue

HOST = torch.device("cpu")
NONE = frozenset[Cue]()


def image(fill: float, rows: int = 4) -> Encoded:
    """`rows` x 8 numbers of 4 bytes."""
    return Encoded(torch.full((rows, 8), fill))


def test_the_least_recently_used_goes_first_and_the_bound_holds() -> None:
    cache = FeatureCache(3 * 128)
    for name in "abc":
        cache.put(name, image(float(ord(name))))
    assert cache.get("a", NONE, HOST) is not None
    cache.put("d", image(1.0))
    assert [name for name in "abcd" if cache.get(name, NONE, HOST)] == ["a", "c", "d"]
    assert cache.size == 384 and len(cache) == 3
    cache.put("e", image(2.0, rows=8))
    assert [name for name in "acde" if cache.get(name, NONE, HOST)] == ["d", "e"] and cache.size == 384
    cache.put("d", image(3.0, rows=2))
    found = cache.get("d", NONE, HOST)
    assert found is not None and found.rows.shape == (2, 8) and cache.size == 256 + 64
    cache.put("f", image(0.0, rows=100))  # larger than all the room: the others stay
    assert len(cache) == 2
    cache.clear()
    assert cache.size == len(cache) == 0 and cache.get("d", NONE, HOST) is None


def test_nothing_is_kept_without_room() -> None:
    cache = FeatureCache(0)
    cache.put("a", image(1.0))
    assert len(cache) == 0


def test_cues_that_were_not_read_are_not_there() -> None:
    cache, needs = FeatureCache(10_000), frozenset({Cue.ENCODER_ATTENTION})
    cache.put("a", image(1.0))
    assert cache.get("a", NONE, HOST) is not None and cache.get("a", needs, HOST) is None
    cache.put("a", Encoded(torch.ones(4, 8), {Cue.ENCODER_ATTENTION: torch.ones(4)}))
    found = cache.get("a", needs, HOST)
    assert found is not None and cache.get("a", NONE, HOST) is not None and cache.size == 128 + 16
    assert torch.equal(found.cues[Cue.ENCODER_ATTENTION], torch.ones(4))


def test_what_is_kept_is_a_copy() -> None:
    cache, batch = FeatureCache(10_000), torch.zeros(100, 8)
    cache.put("a", Encoded(batch[:4]))
    batch += 1
    found = cache.get("a", NONE, HOST)
    assert found is not None and not found.rows.any() and found.rows.untyped_storage().nbytes() == 128
