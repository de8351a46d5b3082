import numpy as np
import torch

from foveate.selection.cpu.similarity_cache import NARROW, Met
from foveate.selection.similarity import NEVER


def met_in_blocks(count, room, blocks):
    """All cosines of N tokens, unknown where not in a block, and the same as `Met` was told of them."""
    cosines = torch.rand(count, count, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    cosines = (cosines + cosines.T) / 2
    known, met = np.full((count, count), NEVER, dtype=np.float32), Met(count, room)
    for tokens, others in blocks:
        block = cosines[tokens][:, others]
        met.note(tokens, others, block)
        if room >= block.numel():
            room -= block.numel()
            known[np.ix_(tokens, others)] = block
            if len(tokens) >= NARROW:
                known[np.ix_(others, tokens)] = block.T
    return known, met


BLOCKS = [
    (np.arange(0, 100, 2), np.arange(1, 100, 2)),
    (np.arange(3, 8), np.arange(100, 200)),  # few: what they tell of the others is not kept
    (np.arange(150, 200), np.arange(60)),
]


def test_highest_of_what_is_known():
    known, met = met_in_blocks(200, 10**6, BLOCKS)
    for tokens in ([4], [5, 170], [199], list(range(0, 200, 7))):
        assert (met.highest(np.array(tokens)).numpy() == known[tokens].max(0)).all()


def test_what_comes_when_the_room_is_taken_is_forgotten():
    known, met = met_in_blocks(200, 3200, BLOCKS)
    assert (known[160] == NEVER).all()
    for tokens in ([4], [160], [2, 3, 5]):
        assert (met.highest(np.array(tokens)).numpy() == known[tokens].max(0)).all()


def test_what_rounding_cannot_tell_from_1_is_1():
    met = Met(3, 9)
    met.note(np.array([0]), np.array([1, 2]), torch.tensor([[1 - 2**-20, 0.5]]))
    assert met.highest(np.array([0])).tolist() == [NEVER, 1, 0.5]


def test_nobody_met():
    assert (Met(5, 0).highest(np.array([1, 2])) == NEVER).all()
