"""CLSE: the filter by a sum over frequencies, its schedule, and the release's counts."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.golden import facts


def detail(plane: list[list[float]], cutoff: float) -> list[float]:
    """Of one channel: size of the high-passed map, each frequency and place by itself."""
    rows, columns = len(plane), len(plane[0])
    reach = cutoff * min(rows // 2, columns // 2)
    out = [[0j] * columns for _ in range(rows)]
    for u in range(rows):
        for v in range(columns):
            wave = [
                [cmath.exp(2j * math.pi * (u * y / rows + v * x / columns)) for x in range(columns)]
                for y in range(rows)
            ]
            weight = sum(plane[y][x] * wave[y][x].conjugate() for y in range(rows) for x in range(columns))
            near = (min(u, rows - u) if u != rows / 2 else u) ** 2 + (
                min(v, columns - v) if v != columns / 2 else v
            ) ** 2
            passed = 1 - math.exp(-near / (2 * reach**2)) if reach else float(near > 0)
            for y in range(rows):
                for x in range(columns):
                    out[y][x] += passed * weight * wave[y][x] / (rows * columns)
    return [abs(value) for row in out for value in row]


@pytest.mark.parametrize("grid", [Grid(4, 6), Grid(5, 3), Grid(1, 4)])
def test_the_filter(grid: Grid) -> None:
    states = torch.randn(len(grid), 2)
    method = get_method("clse", cutoff=0.4)
    planes = states.mT.reshape(2, grid.rows, grid.columns).tolist()
    expected = torch.tensor([detail(plane, 0.4) for plane in planes]).mean(0)
    torch.testing.assert_close(method.detail(states, grid), expected, atol=1e-5, rtol=1e-4)


def test_frames_are_filtered_apart_and_images_compared_apart() -> None:
    method, clip = get_method("clse"), Grid(3, 4, frames=2)
    first, then, attention = torch.randn(24, 5), torch.randn(24, 5), torch.rand(24)
    frames = [method.detail(then[part], clip.frame) for part in (slice(12), slice(12, 24))]
    torch.testing.assert_close(method.detail(then, clip), torch.cat(frames))
    two = VisualTokens(
        then[None], ((clip.frame, clip.frame),), input_embeddings=first[None], llm_attention=attention[None]
    )
    parts = [method.factor(first[part], then[part], clip.frame) for part in (slice(12), slice(12, 24))]
    torch.testing.assert_close(method.scores(two)[0], torch.cat(parts) * attention)


def test_what_did_not_change_is_ranked_by_attention() -> None:
    states = torch.randn(6, 3)
    attention = torch.tensor([0.1, 0.5, 0.2, 0.4, 0.3, 0.0])
    tokens = VisualTokens.of(states, Grid(2, 3), input_embeddings=states, llm_attention=attention)
    torch.testing.assert_close(get_method("clse").scores(tokens)[0], attention / 2)
    alone = VisualTokens.of(states[:1], Grid(1, 1), input_embeddings=states[1:2], llm_attention=attention[:1])
    assert get_method("clse").select(alone, torch.tensor([1])).keep.tolist() == [[True]]


@pytest.mark.parametrize(
    ("kind", "layers", "at"),
    [("llava", 32, (1, 11, 21)), ("qwen2-vl", 28, (1, 10, 19)), ("qwen2-vl", 36, (1, 13, 24)), ("llava", 4, (1, 2, 3))],
)
def test_layers(kind: str, layers: int, at: tuple[int, ...]) -> None:
    method = get_method("clse").bind(facts(kind, layers=layers))
    stages = method.stages(layers, Budget(0.2))
    assert tuple(stage.layer for stage in stages) == at
    assert [stage.method.name for stage in stages] == ["clse"] * 3
    assert [type(stage.method) is type(method) for stage in stages] == [True, False, False]


def test_the_release_on_llava() -> None:
    stages = get_method("clse").stages(32, Budget(6082 / 31 / 576))
    assert [stage.budget.count(576) for stage in stages] == [330, 210, 62]
    lower = get_method("clse").stages(32, Budget(2020 / 31 / 576))  # the release: 110, 70, 20
    assert [stage.budget.count(576) for stage in lower] == [110, 70, 21]


def test_it_prunes_first() -> None:
    tokens = VisualTokens.of(
        torch.randn(4, 2),
        Grid(2, 2),
        input_embeddings=torch.randn(4, 2),
        llm_attention=torch.rand(4),
        alive=torch.tensor([True, True, True, False]),
    )
    with pytest.raises(MethodError, match="clse reads whole grids"):
        get_method("clse").select(tokens, torch.tensor([2]))
