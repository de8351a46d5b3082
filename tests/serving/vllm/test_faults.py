"""No image, whatever its numbers, can end a server or change what is kept of its neighbours."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate import Budget, get_method
from foveate.grouping import TokenGroups
from foveate.serving.vllm.batch import MethodCall, Shortened, _within, groups_of, shorten, shorten_safely
from foveate.serving.vllm.faults import Faults, add_faults, count_faults, find_usable
from foveate.tokens import Cue, Grid, Selection, VisualTokens

from .served import WIDTH, cues_for, image, question_for, served_methods

METHODS = served_methods()
GRID, CLIP = Grid(4, 5), Grid(2, 3, 4)
Image = tuple[Tensor, dict[Cue, Tensor]]


def grid_for(name: str) -> Grid:
    return CLIP if name == "evs" else GRID  # which takes clips only


def changed(given: Image, what: str, dtype: torch.dtype) -> Image:
    """The image with numbers that no encoder should give."""
    rows, cues = given[0].clone(), {cue: read.clone() for cue, read in given[1].items()}
    largest = torch.finfo(dtype).max
    match what:
        case "a NaN":
            rows[3, 1] = torch.nan
        case "all NaN":
            rows.fill_(torch.nan)
            cues = {cue: torch.full_like(read, torch.nan) for cue, read in cues.items()}
        case "overflown":
            rows[2, 0], rows[5, 2] = torch.inf, -torch.inf
        case "cues of NaN":
            cues = {cue: torch.full_like(read, torch.nan) for cue, read in cues.items()}
        case "beyond float32":
            rows[4] = largest
    return rows, cues


NOT_USABLE = ["a NaN", "all NaN", "overflown", "beyond float32"]


def run(method: Any, images: list[Image], grids: list[Grid], budgets: list[Budget], faults: Faults) -> list[Shortened]:
    groups = [groups_of([grid], budget) for grid, budget in zip(grids, budgets, strict=True)]
    question, rows = question_for(method, groups, images[0][0].dtype), [rows for rows, _ in images]
    return shorten_safely(MethodCall(method, rows, groups, cues_for(method, images), WIDTH, question), faults)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_that_cannot_be_computed_with_keep_their_first_tokens(name: str, dtype: torch.dtype) -> None:
    method, grid, faults = METHODS[name], grid_for(name), Faults()
    good, other, bad = image(grid, 1, dtype), image(grid, 2, dtype), image(grid, 3, dtype)
    budget, kept = [Budget(0.4)] * 3, Budget(0.4).count(len(grid))
    alone = [run(method, [one], [grid], budget[:1], faults)[0] for one in (good, other)]
    assert faults.non_finite == 0
    wrong = [*NOT_USABLE, *["cues of NaN"] * bool(cues_for(method, []))]
    for number, what in enumerate(wrong, 1):
        given = changed(bad, what, dtype)
        before, middle, after = run(method, [good, given, other], [grid] * 3, budget, faults)
        for found, expected in ((before, alone[0]), (after, alone[1])):
            assert torch.equal(found.index, expected.index) and torch.equal(found.rows, expected.rows), what
        assert middle.index.tolist() == list(range(kept)), what
        assert torch.equal(middle.rows, given[0][:kept].nan_to_num(0, 0, 0)), what
        assert faults.non_finite == number and faults.failed == 0, what


ODD = {
    "equal tokens": lambda rows: rows[:1].expand_as(rows),
    "zeros": torch.zeros_like,
    "one number": torch.ones_like,
    "tiny": lambda rows: rows * 1e-38,
    "the largest that float16 has": lambda rows: rows.sign() * 65504,
    "the largest that is used": lambda rows: rows.sign() * 1e15,
    "opposites": lambda rows: rows * (1 - 2 * (torch.arange(len(rows)) % 2)[:, None]),
}


@pytest.mark.parametrize("name", METHODS)
def test_odd_images_and_shapes_are_answered_by_the_method_itself(name: str) -> None:
    """As many as asked for, finite, none fallen back; on pictures of one token, of one row, and of one column."""
    method, faults = METHODS[name], Faults()
    frames = 3 if name == "evs" else 1
    for rows, columns in ((1, 1), (1, 2), (1, 37), (37, 1), (4, 5)):
        grid = Grid(rows, columns, frames)
        for what, make in ODD.items():
            embeddings, cues = image(grid, 1)
            if what != "opposites":  # whose encoder sees something
                cues[Cue.ENCODER_ATTENTION] = torch.full((len(grid),), 1 / len(grid))
                cues[Cue.ENCODER_FEATURES] = make(cues[Cue.ENCODER_FEATURES])
            for budget in (Budget(0.4), Budget(10**9)):
                (found,) = run(method, [(make(embeddings), cues)], [grid], [budget], faults)
                assert len(found.index) == budget.count(len(grid)), (what, grid, budget)
                assert bool(found.rows.isfinite().all()), (what, grid, budget)
                assert faults.failed == 0 and faults.non_finite == 0, (what, grid, budget)


def test_half_precision_that_overflows_when_it_merges_is_still_finite() -> None:
    method = METHODS["visionzip"]  # a target and the mean of those that joined it, which is twice as long
    rows, cues = image(GRID, 0)
    (found,) = run(method, [((rows.sign() * 60000).half(), cues)], [GRID], [Budget(4)], Faults())
    assert bool(found.rows.isfinite().all())


class Raises(type(get_method("divprune"))):  # type: ignore[misc]
    """Cannot take images whose first number is 7."""

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        if bool((tokens.features[:, 0, 0] == 7).any()):
            raise torch.linalg.LinAlgError("it did not converge")
        return super().select(tokens, count)


def test_a_method_that_raises_for_one_image_decides_for_no_other(caplog: pytest.LogCaptureFixture) -> None:
    images, faults = [image(GRID, seed) for seed in range(3)], Faults()
    images[1][0][0, 0] = 7
    grids, budgets = [GRID] * 3, [Budget(5)] * 3
    expected = run(METHODS["divprune"], images, grids, budgets, Faults())
    with caplog.at_level(logging.ERROR, logger="vllm.foveate"):
        for times in (1, 2):
            found = run(Raises(), images, grids, budgets, faults)
            assert faults.failed == times
    assert torch.equal(found[0].index, expected[0].index) and torch.equal(found[2].index, expected[2].index)
    assert found[1].index.tolist() == [0, 1, 2, 3, 4]
    assert [record.message[:15] for record in caplog.records] == ["divprune raised"]
    assert "did not converge" in caplog.text


def test_a_target_beyond_the_row_reaches_no_device() -> None:
    """On a GPU merges are not checked, as the host would wait; an index out of range would end the process."""
    keep = torch.ones(1, 3, dtype=torch.bool)
    assert _within(Selection(keep, torch.tensor([[-1, 2, 99]]), torch.ones(1, 3))).target.tolist() == [[-1, 2, 2]]


def test_what_is_not_finite_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults()
    with caplog.at_level(logging.WARNING, logger="vllm.foveate"):
        faults.count_unusable(torch.tensor([True, True]))
        assert not caplog.records and faults.non_finite == 0
        faults.count_unusable(torch.tensor([False, True, False]))
        faults.count_unusable(torch.tensor([False]))
    assert faults.non_finite == 3 and len(caplog.records) == 1 and "keeps its first tokens" in caplog.text


def test_tiles_and_frames_each_keep_their_first_tokens() -> None:
    rows, cues = image(CLIP, 0)
    rows[-1] = torch.nan
    groups: list[TokenGroups] = [groups_of([CLIP], Budget(2, "frame"))]
    method = METHODS["divprune"]
    (found,) = shorten(MethodCall(method, [rows], groups, cues_for(method, [(rows, cues)]), WIDTH))
    assert found.index.tolist() == [0, 1, 6, 7, 12, 13, 18, 19]


def test_which_images_are_usable() -> None:
    fine, half = torch.randn(4, 3), torch.full((2, 2), 65504.0).half()
    assert find_usable([[fine], [fine, half], [fine, fine.log()], [fine * 1e16], [-fine * 1e16]]).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_what_other_processes_count_is_seen_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = tmp_path / "count"
    shared.touch()
    monkeypatch.setenv("FOVEATE_FAULTS", str(shared))
    code = "from foveate.serving.vllm.faults import add_faults; add_faults(2); add_faults(0); add_faults(1)"
    subprocess.run([sys.executable, "-c", code], check=True)
    counted = Faults()
    counted.count_unusable(torch.tensor([True, False, False]))
    counted.count_unusable(torch.tensor([False]))
    counted.count_failed("a method", 2, ValueError())
    assert count_faults() == 3 + 3 + 2


def test_without_a_server_faults_are_counted_in_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOVEATE_FAULTS", raising=False)
    add_faults(1)
    assert count_faults() == 0
