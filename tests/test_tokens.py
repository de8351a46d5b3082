"""Grids, coordinates, padding and merging against plain Python loops."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate import Cue, Grid, Selection, SelectionError, VisualTokens
from foveate.tokens import as_grid

grids = st.builds(Grid, rows=st.integers(1, 4), columns=st.integers(1, 4), frames=st.integers(1, 3))
batches = st.lists(st.lists(grids, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)


def tokens_of(pools: tuple[tuple[Grid, ...], ...], extra: int = 0) -> VisualTokens:
    width = max(sum(len(grid) for grid in pool) for pool in pools) + extra
    return VisualTokens(torch.zeros(len(pools), width, 3), pools)


@given(grids)
def test_grid_coordinates_are_raster_order(grid: Grid) -> None:
    expected = list(itertools.product(range(grid.frames), range(grid.rows), range(grid.columns)))
    assert [tuple(place) for place in grid.coordinates().tolist()] == expected
    assert len(grid) == len(expected)


@given(batches, st.integers(0, 2))
def test_pools_are_laid_end_to_end(pools: tuple[tuple[Grid, ...], ...], extra: int) -> None:
    tokens = tokens_of(pools, extra)
    for row, pool in enumerate(pools):
        expected, frame = [], 0
        for grid in pool:
            places = itertools.product(range(grid.frames), range(grid.rows), range(grid.columns))
            expected += [(frame + f, r, c) for f, r, c in places]
            frame += grid.frames
        size, width = len(expected), tokens.features.shape[1]
        assert tokens.sizes[row] == size
        assert tokens.valid[row].tolist() == [True] * size + [False] * (width - size)
        assert [tuple(p) for p in tokens.coordinates[row].tolist()] == expected + [(-1, -1, -1)] * (width - size)
        assert len(set(expected)) == size  # frames of different images never coincide


def test_dropped_tokens_cannot_be_chosen() -> None:
    alive = torch.tensor([[True, False, True, True, True]])
    tokens = VisualTokens(torch.zeros(1, 5, 2), ((Grid(2, 2),),), alive=alive)
    assert tokens.valid.tolist() == [[True, False, True, True, False]]


def test_of_adds_a_batch_dimension() -> None:
    tokens = VisualTokens.of(torch.zeros(6, 2), Grid(2, 3), encoder_attention=torch.arange(6.0), llm_attention=None)
    assert tokens.features.shape == (1, 6, 2)
    assert tokens.cue(Cue.ENCODER_ATTENTION).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert tokens.llm_attention is None


def test_cues_by_name_and_in_a_mapping_are_the_same() -> None:
    features, attention = torch.zeros(1, 6, 2), torch.rand(1, 6)
    named = VisualTokens(features, ((Grid(2, 3),),), encoder_attention=attention)
    mapped = VisualTokens(features, ((Grid(2, 3),),), {Cue.ENCODER_ATTENTION: attention})
    assert named.cues == mapped.cues and mapped.encoder_attention is attention
    assert replace(mapped, encoder_attention=None).cues == {}
    assert VisualTokens(**vars(mapped)).cues == mapped.cues


def test_text_is_all_real_and_behind_the_images_unless_said_otherwise() -> None:
    words = torch.rand(3, 2)
    plain = VisualTokens.of(torch.zeros(4, 2), Grid(2, 2), text_embeddings=words)
    assert plain.text_valid.tolist() == plain.text_follows.tolist() == [[True] * 3]
    assert torch.equal(plain.text(0), words)
    valid = torch.tensor([False, True, True])
    padded = VisualTokens.of(torch.zeros(4, 2), Grid(2, 2), text_embeddings=words, text_valid=valid)
    assert torch.equal(padded.text(0), words[1:]) and torch.equal(padded.text_follows, padded.text_valid)
    assert VisualTokens.of(torch.zeros(4, 2), Grid(2, 2)).text_valid.shape == (1, 0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"encoder_atention": torch.zeros(1, 4)}, r"'encoder_atention' is not a cue; did you mean 'encoder_attention'"),
        ({"llm_keys": torch.zeros(1, 3)}, r"llm_keys has the shape \(1, 3\), but must be \(B, N\) = \(1, 4\)\."),
        ({"encoder_features": torch.zeros(1, 4)}, r"encoder_features .* must be \(B, N, e\) = \(1, 4, e\)\."),
        ({"llm_contributions": torch.zeros(1, 4, 2, 2)}, r"must be \(B, N, L, 3\) = \(1, 4, L, 3\)\."),
        (
            {"alive": torch.ones(1, 3, dtype=torch.bool)},
            r"alive has the shape \(1, 3\), but must be \(B, N\) = \(1, 4\)",
        ),
        ({"padding": torch.zeros(1, 4)}, "padding is torch.float32, but must be bool"),
        (
            {"encoder_attention": torch.zeros(1, 4).bool()},
            "encoder_attention is torch.bool, but must be num",
        ),
        ({"text_keys": torch.zeros(1, 5), "text_states": torch.zeros(1, 6, 2)}, r"text_states .* = \(1, 5, 2\)\."),
        ({"text_keys": torch.zeros(1, 5), "text_valid": torch.ones(1, 6).bool()}, r"text_keys .* = \(1, 6\)\."),
    ],
)
def test_cues_that_do_not_fit(given: dict[str, torch.Tensor], says: str) -> None:
    with pytest.raises(SelectionError, match=says):
        VisualTokens(torch.zeros(1, 4, 2), ((Grid(2, 2),),), **given)


def test_numbers_are_in_float32_and_vectors_in_at_most_32_bits() -> None:
    half, double = torch.bfloat16, torch.float64
    shape = {"encoder_attention": (4,), "encoder_features": (4, 3)}
    for dtype, numbers, vectors in [(half, torch.float32, half), (double, torch.float32, torch.float32)]:
        cues = {name: torch.zeros(size, dtype=dtype) for name, size in shape.items()}
        single = VisualTokens.of(torch.zeros(4, 2, dtype=dtype), Grid(2, 2), **cues).single()
        assert single.cue(Cue.ENCODER_ATTENTION).dtype == numbers
        assert single.cue(Cue.ENCODER_FEATURES).dtype == single.features.dtype == vectors
        assert single.single() is single


@pytest.mark.parametrize("cue", list(Cue))
def test_missing_cue_names_itself_and_the_fix(cue: Cue) -> None:
    with pytest.raises(SelectionError, match=rf"{cue.name}.*needs"):
        VisualTokens.of(torch.zeros(4, 2), Grid(2, 2)).cue(cue)


@pytest.mark.parametrize(
    ("shape", "pools", "says"),
    [
        ((4, 2), 4, "must be"),
        ((2, 4, 2), 1, "1 tuples"),
        ((1, 3, 2), 1, "4 tokens, features only 3"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...], pools: int, says: str) -> None:
    with pytest.raises(SelectionError, match=says):
        VisualTokens(torch.zeros(shape), ((Grid(2, 2),),) * pools)


def test_merged_is_the_weighted_sum_of_what_flows_in() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 12, 5, generator=generator)
    target = torch.randint(-1, 12, (3, 12), generator=generator)
    weight = torch.rand(3, 12, generator=generator)
    expected = torch.zeros_like(features)
    for b, n in itertools.product(range(3), range(12)):
        if target[b, n] >= 0:
            expected[b, target[b, n]] += weight[b, n] * features[b, n]
    keep = torch.ones(3, 12, dtype=torch.bool)
    torch.testing.assert_close(Selection(keep, target, weight).merged(features), expected)
    assert Selection(keep, target, weight).merged(features.bfloat16()).dtype == torch.bfloat16


def test_what_flows_nowhere_does_not_matter_even_if_not_finite() -> None:
    features = torch.tensor([[[1.0], [float("nan")], [3.0]]])
    selection = Selection(torch.tensor([[True, False, True]]), torch.tensor([[0, -1, 2]]), torch.ones(1, 3))
    assert selection.merged(features).flatten().tolist() == [1.0, 0.0, 3.0]


def test_without_merges_features_are_untouched() -> None:
    features = torch.randn(1, 4, 2)
    assert Selection(torch.ones(1, 4, dtype=torch.bool)).merged(features) is features


def test_as_grid() -> None:
    assert as_grid((2, 3)) == as_grid(Grid(2, 3)) == Grid(2, 3, 1)
    assert as_grid([4, 2, 3]) == Grid(2, 3, frames=4)
    with pytest.raises(SelectionError, match="rows, columns"):
        as_grid([1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: VisualTokens(torch.ones(1, 6, 4), (Grid(2, 3),)), "must be a tuple of Grid"),
        (lambda: VisualTokens(torch.ones(1, 6, 4), (((2, 3),),)), "must be a tuple of Grid"),
        (lambda: VisualTokens.of(torch.ones(6, 4).long(), Grid(2, 3)), "features are torch.int64"),
        (lambda: VisualTokens([[1.0]], ((Grid(1, 1),),)), "features are a list"),
        (lambda: VisualTokens(torch.ones(1, 1, 1), ((Grid(1, 1),),), {"last_norm": torch.ones(1, 1)}), "is not a cue"),
        (lambda: VisualTokens(torch.ones(1, 1, 1), ((Grid(1, 1),),), {Cue.ENCODER_ATTENTION: None}), "a NoneType"),
        (lambda: Grid(-1, 3), "rows=-1"),
        (lambda: Grid(2, 2.5), "columns=2.5"),
        (lambda: Grid(2, 3, "4"), "frames='4'"),
    ],
)
def test_what_does_not_fit_is_said(make, says):
    with pytest.raises(SelectionError, match=says):
        make()


def test_grids_of_other_integers_are_grids():
    assert repr(Grid(torch.tensor(2), np.int64(3))) == "Grid(rows=2, columns=3, frames=1)"
