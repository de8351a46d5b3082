"""An image that is encoded again keeps the same tokens, whatever it is batched with."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from foveate import Budget, get_method
from foveate.methods import Method
from foveate.serving.vllm.batch import MethodCall, Shortened, groups_of, shorten
from foveate.serving.vllm.faults import Faults
from foveate.serving.vllm.memory import ChoiceMemory, key_of
from foveate.tokens import Cue, Grid, Selection, VisualTokens

from .served import WIDTH, cues_for, image, question_for, served_methods

METHODS = served_methods()
GRID = Grid(9, 10)
Image = tuple[Tensor, dict[Cue, Tensor]]


def budget_for(name: str) -> tuple[Grid, Budget]:
    return (Grid(5, 6, 3), Budget(0.5)) if name == "evs" else (GRID, Budget(0.25))


def run(method: Method, images: list[Image], grids: list[Grid], budget: Budget) -> list[Shortened]:
    groups = [groups_of([grid], budget) for grid in grids]
    question, rows = question_for(method, groups, images[0][0].dtype), [rows for rows, _ in images]
    return shorten(MethodCall(method, rows, groups, cues_for(method, images), WIDTH, question))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_neighbours_do_not_matter_on_a_cpu(name: str, dtype: torch.dtype) -> None:
    """Bit for bit: alone, first or last, with smaller and with larger images, with itself, and with what is broken."""
    method, (grid, budget) = METHODS[name], budget_for(name)
    frames = grid.frames
    it, small, large = image(grid, 0, dtype), image(Grid(3, 4, frames), 1, dtype), image(Grid(14, 11, frames), 2, dtype)
    broken = torch.full_like(it[0], torch.nan), it[1]
    (alone,) = run(method, [it], [grid], budget)
    sizes = {0: grid, 1: Grid(3, 4, frames), 2: Grid(14, 11, frames), 3: grid}
    images = {0: it, 1: small, 2: large, 3: broken}
    for batch in ([0, 1], [1, 0], [0, 2], [2, 1, 0], [0, 0], [3, 0], [1, 2, 3, 0, 2, 1]):
        found = run(method, [images[one] for one in batch], [sizes[one] for one in batch], budget)
        for which, one in zip(batch, found, strict=True):
            if which == 0:
                assert torch.equal(one.index, alone.index), batch
                assert torch.equal(one.rows, alone.rows), batch


class Fickle(type(get_method("divprune"))):  # type: ignore[misc]
    """Chooses other tokens at each call, as a GPU may."""

    calls: ClassVar[list[int]] = []

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        self.calls.append(len(count))
        keep = torch.zeros_like(tokens.valid)
        for row, many in enumerate(count.tolist()):
            keep[row, torch.randperm(tokens.sizes[row])[:many]] = True
        return Selection(keep)


def ask(memory: ChoiceMemory, method: Method, names: list[str | None], images: list[Image], **more: Any) -> Any:
    groups = [groups_of([more.get("grid", GRID)], more.get("budget", Budget(12))) for _ in images]
    keys = [None if name is None else bytes(key_of(name).tolist()) for name in names]
    call = MethodCall(method, [rows for rows, _ in images], groups, cues_for(method, images), WIDTH)
    return memory.shorten(keys, call, Faults())


def test_what_was_kept_is_kept_again() -> None:
    memory, method, Fickle.calls = ChoiceMemory(), Fickle(), []
    images = [image(GRID, seed) for seed in range(3)]
    first = ask(memory, method, ["a", "b"], images[:2])
    changed = images[1][0] * 1.01, images[1][1]  # the embeddings are those of this time
    again = ask(memory, method, ["c", "b", None], [images[2], changed, images[0]])
    assert torch.equal(again[1].index, first[1].index) and torch.equal(again[1].rows, changed[0][first[1].index])
    assert Fickle.calls == [2, 2]  # the second time for "c" and for the one without a name
    (third,) = ask(memory, method, ["c"], images[2:])
    assert torch.equal(third.index, again[0].index) and Fickle.calls == [2, 2]
    (unnamed,) = ask(memory, method, [None], images[:1])
    assert not torch.equal(unnamed.index, again[2].index) and len(memory) == 3


@pytest.mark.parametrize("name", [name for name in METHODS if name in {"avgpool", "tome", "visionzip", "anchormerge"}])
def test_merges_are_repeated(name: str) -> None:
    memory, method = ChoiceMemory(), METHODS[name]
    images = [(torch.cat([rows, rows[:, :3]], 1), cues) for rows, cues in (image(GRID, seed) for seed in range(2))]
    for grid, budget in ((GRID, Budget(12)), (Grid(9, 5, 2), Budget(6, "frame"))):
        first = ask(memory, method, [f"a{grid}", f"b{grid}"], images, grid=grid, budget=budget)
        (again,) = ask(memory, method, [f"b{grid}"], images[1:], grid=grid, budget=budget)
        assert torch.equal(again.index, first[1].index)
        assert torch.allclose(again.rows, first[1].rows, atol=1e-5)


@pytest.mark.parametrize("name", ["divprune", "tome"])
def test_a_name_that_is_given_to_another_image_does_not_end_the_server(name: str) -> None:
    """As clients may, who name images themselves (``uuid``): the choice of the first lies beyond the second."""
    memory, method, small = ChoiceMemory(), METHODS[name], Grid(4, 5)
    ask(memory, method, ["a"], [image(GRID, 0)])
    (found,) = ask(memory, method, ["a"], [image(small, 1)], grid=small)
    (fresh,) = ask(ChoiceMemory(), method, ["a"], [image(small, 1)], grid=small)
    assert torch.equal(found.index, fresh.index) and torch.equal(found.rows, fresh.rows)
    (again,) = ask(memory, method, ["a"], [image(GRID, 0)])  # and it is the first one's turn again
    assert len(again.index) == 12 and len(memory) == 1


def test_another_budget_is_another_choice_and_memory_is_bounded() -> None:
    memory, method = ChoiceMemory(30), METHODS["divprune"]
    images = [image(GRID, seed) for seed in range(4)]
    for seed in (0, 1):
        ask(memory, method, [str(seed)], images[seed : seed + 1])
    (found,) = ask(memory, method, ["0"], images[:1], budget=Budget(5))  # as if names had collided
    assert len(found.index) == 5 and len(memory) == 2
    ask(memory, method, ["2"], images[2:3])
    ask(memory, method, ["3"], images[3:])
    assert len(memory) == 3 and memory._choices.size == 5 + 12 + 12  # "1" was not used for longest


def test_what_cannot_be_repeated_is_not_remembered() -> None:
    class Mixes(Selection):
        def merged(self, features: Tensor) -> Tensor:
            return features.flip(-1)

    class Mixing(type(get_method("divprune"))):  # type: ignore[misc]
        def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
            keep = super().select(tokens, count).keep
            return Mixes(keep, torch.where(keep, torch.arange(keep.shape[1]), -1))

    memory = ChoiceMemory()
    (found,) = ask(memory, Mixing(), ["a"], [image(GRID, 0)])
    assert len(memory) == 0 and torch.equal(found.rows, image(GRID, 0)[0][found.index].flip(-1))
