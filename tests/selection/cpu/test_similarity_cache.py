import numpy as np
import torch

from foveate.selection.cpu.similarity_cache import MIN_TRANSPOSED, SimilarityCache
from foveate.selection.similarity import NEVER


def cache_blocks(count, capacity, blocks):
    """All cosines of N tokens, unknown where not in a block, and a cache of the same blocks."""
    cosines = torch.rand(count, count, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    cosines = (cosines + cosines.T) / 2
    known, cache = np.full((count, count), NEVER, dtype=np.float32), SimilarityCache(count, capacity)
    for tokens, others in blocks:
        block = cosines[tokens][:, others]
        cache.add(tokens, others, block)
        if capacity >= block.numel():
            capacity -= block.numel()
            known[np.ix_(tokens, others)] = block
            if len(tokens) >= MIN_TRANSPOSED:
                known[np.ix_(others, tokens)] = block.T
    return known, cache


BLOCKS = [
    (np.arange(0, 100, 2), np.arange(1, 100, 2)),
    (np.arange(3, 8), np.arange(100, 200)),  # few: not kept in the other direction
    (np.arange(150, 200), np.arange(60)),
]


def test_highest_of_what_is_known():
    known, cache = cache_blocks(200, 10**6, BLOCKS)
    for tokens in ([4], [5, 170], [199], list(range(0, 200, 7))):
        assert (cache.highest(np.array(tokens)).numpy() == known[tokens].max(0)).all()


def test_blocks_beyond_the_capacity_are_not_kept():
    known, cache = cache_blocks(200, 3200, BLOCKS)
    assert (known[160] == NEVER).all()
    for tokens in ([4], [160], [2, 3, 5]):
        assert (cache.highest(np.array(tokens)).numpy() == known[tokens].max(0)).all()


def test_cosines_near_1_are_1():
    cache = SimilarityCache(3, 9)
    cache.add(np.array([0]), np.array([1, 2]), torch.tensor([[1 - 2**-20, 0.5]]))
    assert cache.highest(np.array([0])).tolist() == [NEVER, 1, 0.5]


def test_an_empty_cache():
    assert (SimilarityCache(5, 0).highest(np.array([1, 2])) == NEVER).all()
