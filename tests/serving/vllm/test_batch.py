"""Selection for a step: each image is pruned as if it were alone, whatever it is batched with."""

from __future__ import annotations

import pytest
import torch

from foveate import Budget, MethodError, get_method
from foveate.grouping import TokenGroups
from foveate.serving.vllm.batch import MethodCall, Question, first_tokens, groups_of, shorten
from foveate.serving.vllm.family import pick, take
from foveate.tokens import Cue, Grid, Selection, VisualTokens

WIDTH = 12


def listed(groups: TokenGroups) -> list[tuple[Grid, int, int]]:
    """Of each group its grid, where it begins in its image, and how many tokens it keeps."""
    return [(span.grid, int(span.index[0]), count) for (span,), count in zip(groups.spans, groups.counts, strict=True)]


def test_groups_of_images_tiles_and_frames() -> None:
    clip, tile = Grid(2, 3, 4), Grid(2, 2)
    assert listed(groups_of([clip], Budget(0.5))) == [(clip, 0, 12)]
    assert listed(groups_of([clip], Budget(0.5, "frame"))) == [(Grid(2, 3), 6 * i, 3) for i in range(4)]
    assert listed(groups_of([tile] * 3, Budget(0.25))) == [(tile, 4 * i, 1) for i in range(3)]


@pytest.mark.parametrize("name", ["divprune", "idpruner", "avgpool", "random", "visionzip"])
def test_a_batch_equals_its_images_one_by_one(name: str) -> None:
    method, grids = get_method(name), [Grid(4, 4), Grid(2, 5), Grid(3, 3, 2)]
    features = [torch.randn(len(grid), WIDTH + 3) for grid in grids]  # three more columns, as DeepStack has
    cues = {
        Cue.ENCODER_ATTENTION: [torch.rand(len(grid)) for grid in grids],
        Cue.ENCODER_FEATURES: [torch.randn(len(grid), 7) for grid in grids],
    }
    groups = [groups_of([grid], Budget(0.4, "frame")) for grid in grids]
    together = shorten(MethodCall(method, features, groups, cues, WIDTH))
    for item, chosen in enumerate(together):
        of_item = {cue: read[item : item + 1] for cue, read in cues.items()}
        (alone,) = shorten(MethodCall(method, features[item : item + 1], groups[item : item + 1], of_item, WIDTH))
        assert torch.equal(chosen.index, alone.index)
        assert torch.allclose(chosen.rows, alone.rows, atol=1e-6)
        assert len(chosen.index) == sum(groups[item].counts)
        assert bool((chosen.index.diff() > 0).all())
        assert torch.equal(chosen.rows[:, WIDTH:], features[item][chosen.index, WIDTH:])


def test_rows_are_those_that_the_method_keeps_or_merges() -> None:
    grid, features = Grid(4, 4), torch.randn(16, WIDTH)
    for name in ("divprune", "avgpool"):
        selection = get_method(name).select(VisualTokens.of(features, grid), torch.tensor([4]))
        (chosen,) = shorten(MethodCall(get_method(name), [features], [groups_of([grid], Budget(4))], {}, WIDTH))
        kept = selection.keep[0].nonzero()[:, 0]
        assert torch.equal(chosen.index, kept)
        assert torch.equal(chosen.rows, selection.merged(features[None])[0, kept])


def test_a_method_that_misses_its_count_is_refused() -> None:
    class KeepsAll(type(get_method("divprune"))):  # type: ignore[misc]
        def select(self, tokens: VisualTokens, count: torch.Tensor) -> Selection:
            return Selection(tokens.valid)

    grids = [Grid(4, 4), Grid(2, 5)]
    features = [torch.randn(len(grid), WIDTH) for grid in grids]
    with pytest.raises(MethodError, match=r"kept \[16, 10\] tokens where \[4, 4\] were asked for"):
        shorten(MethodCall(KeepsAll(), features, [groups_of([grid], Budget(4)) for grid in grids], {}, WIDTH))


def test_take_cuts_a_batch_between_images() -> None:
    batch = {
        "pixel_values": torch.arange(10)[:, None],
        "grid": torch.tensor([[1], [2], [3]]),
        "notes": ["a", "b", "c"],
        "token": torch.tensor(5),
    }
    part = take(batch, {"pixel_values": [3, 2, 5]}, 1, 3)
    assert part["pixel_values"].flatten().tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert part["grid"].flatten().tolist() == [2, 3] and part["notes"] == ["b", "c"] and part["token"] == 5
    picked = pick(batch, {"pixel_values": [3, 2, 5]}, [2, 0])
    assert picked["pixel_values"].flatten().tolist() == [5, 6, 7, 8, 9, 0, 1, 2]
    assert picked["grid"].flatten().tolist() == [3, 1] and picked["notes"] == ["c", "a"] and picked["token"] == 5


@pytest.mark.parametrize("name", ["cdpruner", "trim", "par", "eadp", "mmtok"])
def test_the_question_is_what_text_aware_methods_read(name: str) -> None:
    method, grids = get_method(name), [Grid(4, 4), Grid(2, 5, 2)]
    features = [torch.randn(len(grid), WIDTH + 3) for grid in grids]
    encoded = [torch.randn(len(grid), 7) for grid in grids]
    cues = {Cue.ENCODER_FEATURES: encoded} if Cue.ENCODER_FEATURES in method.needs else {}
    groups = [groups_of([grid], Budget(0.4, "frame")) for grid in grids]
    kept = []
    for text in torch.randn(2, 6, WIDTH):
        together = shorten(MethodCall(method, features, groups, cues, WIDTH, Question(text, [[2], [4, 4]])))
        kept.append(torch.cat([one.index for one in together]))
        row = 0
        for item, grid in enumerate(grids):
            for frame in range(grid.frames):
                size = len(grid.frame)
                part = slice(frame * size, (frame + 1) * size)
                given = {cue: values[item][part][None] for cue, values in cues.items()}
                tokens = VisualTokens(
                    features[item][part, :WIDTH][None],
                    ((grid.frame,),),
                    given | {Cue.TEXT_EMBEDDINGS: text[None]},
                    text_follows=torch.arange(6)[None] >= (2, 4, 4)[row],
                )
                alone = method.select(tokens, torch.tensor([groups[item].counts[frame]])).keep[0].nonzero()[:, 0]
                among = together[item].index
                assert torch.equal(among[(among >= part.start) & (among < part.stop)] - part.start, alone)
                row += 1
    assert not torch.equal(*kept)


def test_each_group_has_its_own_text_behind_it() -> None:
    seen = []

    class Spy(type(get_method("divprune"))):  # type: ignore[misc]
        def select(self, tokens: VisualTokens, count: torch.Tensor) -> Selection:
            seen.append(tokens)
            return super().select(tokens, count)  # type: ignore[no-any-return]

    groups = [groups_of([Grid(2, 2)], Budget(2)), groups_of([Grid(2, 2, 2)], Budget(2, "frame"))]
    features, question = [torch.randn(4, 3), torch.randn(8, 3)], Question(torch.randn(3, 3), [[0], [1, 3]])
    shorten(MethodCall(Spy(), features, groups, {}, 3, question))
    (tokens,) = seen
    assert tokens.text_follows.tolist() == [[True] * 3, [False, True, True], [False] * 3]
    assert tokens.text_valid.all() and tokens.text_embeddings.shape == (3, 3, 3)


@pytest.mark.parametrize("name", ["divprune", "idpruner", "random", "visionzip"])
def test_what_the_encoder_left_out_is_never_chosen(name: str) -> None:
    method, grids = get_method(name), [Grid(4, 4), Grid(2, 5), Grid(3, 3, 2)]
    alive = [torch.arange(len(grid)) % 3 != 1 for grid in grids]
    features = [torch.randn(len(grid), WIDTH) * there[:, None] for grid, there in zip(grids, alive, strict=True)]
    features[1][0, 0] = torch.nan  # it keeps the first tokens of those that are there
    cues = {
        Cue.ENCODER_ATTENTION: [torch.rand(len(grid)) * there for grid, there in zip(grids, alive, strict=True)],
        Cue.ENCODER_FEATURES: [torch.randn(len(grid), 7) for grid in grids],
    }
    groups = [groups_of([grid], Budget(0.4, "frame")) for grid in grids]
    call = MethodCall(method, features, groups, cues, WIDTH, alive=alive)
    together = shorten(call)
    for item, chosen in enumerate(together):
        (alone,) = shorten(call.of([item]))
        assert torch.equal(chosen.index, alone.index) and alive[item][chosen.index].all()
        assert len(chosen.index) == sum(groups[item].counts)
    assert together[1].index.tolist() == [0, 2, 3, 5]
    clip = first_tokens(features[2], groups[2], alive[2])
    assert clip.index.tolist() == [0, 2, 3, 5, 9, 11, 12, 14]
    everything = groups_of([Grid(4, 4)], Budget(int(alive[0].sum())))
    assert torch.equal(first_tokens(features[0], everything, alive[0]).index, alive[0].nonzero()[:, 0])
