"""Cross-channel attention, AffineMix and ColorAug, held against loops and scenes made by hand."""

from __future__ import annotations

import doctest
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foveate.companions import symbiosis
from foveate.companions.symbiosis import (
    AffineMix,
    ColorAug,
    CrossChannelAttention,
    DepthScene,
    SymbiosisError,
    paste_at_depth,
    separate_objects,
    turn_of_hue,
)

ROOT = Path(__file__).parents[2]
THING = 2


def flat(height: int, width: int, depth: float, colour: float = 0.0) -> DepthScene:
    """A wall of one colour and depth, with label 0."""
    labels = torch.zeros(height, width, dtype=torch.int64)
    return DepthScene(torch.full((3, height, width), colour), labels, torch.full((height, width), depth))


def with_thing(rows: slice, columns: slice, depth: float, size: int = 16) -> tuple[DepthScene, torch.Tensor]:
    """A red thing on a blue wall far away, and its mask."""
    scene = flat(size, size, 50.0)
    scene.picture[2] = 1.0
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[rows, columns] = True
    scene.picture[:, mask] = torch.tensor([1.0, 0.0, 0.0])[:, None]
    scene.labels[mask] = THING
    scene.depth[mask] = depth
    return scene, mask


def box(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """Top, bottom, left, right; ends are exclusive."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def test_the_examples_of_docstrings_run() -> None:
    found = doctest.testmod(symbiosis, optionflags=doctest.ELLIPSIS)
    assert found.attempted >= 12 and not found.failed


# -- CCAM


@torch.no_grad()
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 1, 1), (3, 4, 5), (5, 2, 7)])
def test_attention_is_what_loops_compute(channels: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    share = CrossChannelAttention(channels, hidden=4).double()
    for parameter in share.parameters():
        torch.nn.init.normal_(parameter)
    semantics, depth = torch.randn(2, 2, channels, height, width, dtype=torch.float64)
    out_semantics, out_depth = share(semantics, depth)
    first, _, last = share.perceptron
    for b in range(2):
        want_semantics, want_depth = semantics[b].clone(), depth[b].clone()
        for i in range(channels):
            for j in range(channels):
                total = 0.0
                for y in range(height):
                    for x in range(width):
                        looks = []
                        for features, conv in ((semantics, share.look_semantics), (depth, share.look_depth)):
                            raw = float(conv.bias) + sum(
                                float(conv.weight[0, c, 0, 0] * features[b, c, y, x]) for c in range(channels)
                            )
                            looks.append(1 / (1 + math.exp(-raw)))
                        total += looks[0] * float(semantics[b, i, y, x]) * looks[1] * float(depth[b, j, y, x])
                pooled = total / (height * width)
                raw = float(last.bias) + sum(
                    float(last.weight[0, h]) * max(0.0, float(first.weight[h, 0]) * pooled + float(first.bias[h]))
                    for h in range(4)
                )
                alpha = 1 / (1 + math.exp(-raw))
                want_semantics[i] += alpha * depth[b, j]
                want_depth[j] += alpha * semantics[b, i]
        torch.testing.assert_close(out_semantics[b], want_semantics)
        torch.testing.assert_close(out_depth[b], want_depth)


def test_attention_begins_alike_for_all_channels_and_can_learn() -> None:
    share = CrossChannelAttention(6, hidden=5, start=0.1)
    semantics, depth = torch.randn(2, 3, 6, 4, 4)
    torch.testing.assert_close(share.affinity(semantics, depth), torch.full((3, 6, 6), 0.1))
    for _ in range(2):  # before the first step only the last layer of the perceptron can move
        loss = sum(out.square().mean() for out in share(semantics, depth))
        gradients = torch.autograd.grad(loss, list(share.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(share.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_attention_commutes_with_the_order_of_channels_and_of_tasks() -> None:
    torch.manual_seed(1)
    share = CrossChannelAttention(4)
    torch.nn.init.normal_(share.perceptron[2].weight)
    share.look_depth.load_state_dict(share.look_semantics.state_dict())
    semantics, depth = torch.randn(2, 1, 4, 3, 3)
    there, back = share(semantics, depth), share(depth, semantics)
    torch.testing.assert_close(there[0], back[1])
    torch.testing.assert_close(there[1], back[0])


@pytest.mark.parametrize("shapes", [((1, 4, 3, 3), (1, 4, 3, 2)), ((1, 3, 3, 3),) * 2, ((4, 3, 3),) * 2])
def test_attention_refuses_other_shapes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(SymbiosisError, match=r"Give two of one shape \(B, 4, H, W\)"):
        CrossChannelAttention(4)(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("settings", [{"channels": 0}, {"channels": 4, "hidden": 0}, {"channels": 4, "start": 1.0}])
def test_attention_refuses_settings(settings: dict[str, float]) -> None:
    with pytest.raises(SymbiosisError, match="Give"):
        CrossChannelAttention(**settings)


# -- objects


def test_pieces_are_those_that_a_flood_finds() -> None:
    labels = torch.randint(0, 4, (9, 11), generator=torch.Generator().manual_seed(3))
    want, seen = [], set()
    for y in range(9):
        for x in range(11):
            if labels[y, x] not in (1, 3) or (y, x) in seen:
                continue
            piece, edge = set(), [(y, x)]
            while edge:
                at = edge.pop()
                inside = 0 <= at[0] < 9 and 0 <= at[1] < 11
                if inside and at not in piece and labels[at] == labels[y, x]:
                    piece.add(at)
                    edge += [(at[0] + 1, at[1]), (at[0] - 1, at[1]), (at[0], at[1] + 1), (at[0], at[1] - 1)]
            seen |= piece
            want.append(piece)
    found = separate_objects(labels, movable=(1, 3))
    assert [set(map(tuple, mask.nonzero().tolist())) for mask in found] == want and len(want) > 5
    assert separate_objects(labels, movable=()).shape == (0, 9, 11)


# -- AffineMix


@pytest.mark.parametrize(("depth", "expected"), [(8.0, (8, 10, 7, 9)), (4.0, (8, 12, 6, 10)), (2.0, (8, 16, 4, 12))])
def test_the_size_goes_with_depth_and_the_foot_stays_on_the_ground(
    depth: float, expected: tuple[int, int, int, int]
) -> None:
    """A thing of 4 x 4 at depth 4 that reaches from the horizon down: its foot is 4 x 4 = 16 / z below it at each z."""
    source, mask = with_thing(slice(8, 12), slice(6, 10), depth=4.0)
    mixed, pasted = paste_at_depth(source, flat(16, 16, 50.0), mask, depth, horizon=8.0)
    assert box(pasted) == expected
    assert box(pasted)[1] == 8 + 16 / depth
    assert (mixed.labels == THING).equal(pasted)
    assert (mixed.depth[pasted] == depth).all() and (mixed.depth[~pasted] == 50).all()
    # Neither the blue around it bleeds in, nor the black of the target.
    torch.testing.assert_close(mixed.picture[:, pasted], torch.tensor([1.0, 0, 0])[:, None].expand(3, pasted.sum()))
    assert (mixed.picture[:, ~pasted] == 0).all()


@pytest.mark.parametrize("horizon", [2.0, 5.0, 6.5])
def test_the_ground_line_is_kept_for_any_horizon(horizon: float) -> None:
    """A foot at horizon + k / z is at horizon + k / z' afterwards, to half a pixel, and the thing keeps its height."""
    source, mask = with_thing(slice(6, 14), slice(4, 12), depth=3.0, size=24)
    for depth in (3.0, 4.0, 6.0):
        _, pasted = paste_at_depth(source, flat(24, 24, 50.0), mask, depth, horizon=horizon)
        top, bottom, *_ = box(pasted)
        assert abs(bottom - (horizon + (14 - horizon) * 3 / depth)) <= 0.5
        assert abs((bottom - top) * depth - 8 * 3) <= depth


def test_what_is_nearer_hides_it() -> None:
    source, mask = with_thing(slice(4, 12), slice(4, 12), depth=4.0)
    target = flat(16, 16, 50.0, colour=0.5)
    target.depth[:, :8] = 3.0  # a post in front
    target.depth[:, 8] = 4.0  # what is as near hides it, too
    before = [part.clone() for part in target]
    mixed, pasted = paste_at_depth(source, target, mask, depth=4.0)
    assert box(pasted) == (4, 12, 9, 12) and pasted.sum() == 8 * 3
    assert (mixed.labels[:, :9] == 0).all() and (mixed.picture[:, :, :9] == 0.5).all()
    assert all(part.equal(kept) for part, kept in zip(target, before, strict=True))  # the target is left as it is
    _, nothing = paste_at_depth(source, flat(16, 16, 2.0), mask, depth=4.0)
    assert not nothing.any()


def test_at_its_own_depth_it_lands_where_it_was_and_a_shift_moves_it() -> None:
    torch.manual_seed(0)
    source, mask = with_thing(slice(3, 8), slice(2, 7), depth=4.0)
    source = source._replace(picture=torch.rand(3, 16, 16))
    mixed, pasted = paste_at_depth(source, flat(16, 16, 50.0), mask, depth=4.0)
    assert pasted.equal(mask)
    torch.testing.assert_close(mixed.picture[:, mask], source.picture[:, mask])
    mixed, pasted = paste_at_depth(source, flat(16, 16, 50.0), mask, depth=4.0, shift=3.0)
    assert box(pasted) == (3, 8, 5, 10)
    torch.testing.assert_close(mixed.picture[:, pasted], source.picture[:, mask])
    _, pasted = paste_at_depth(source, flat(16, 16, 50.0), mask, depth=4.0, shift=12.0)
    assert box(pasted) == (3, 8, 14, 16)  # cut at the edge of the picture


def test_its_relief_moves_along() -> None:
    source, mask = with_thing(slice(4, 12), slice(4, 12), depth=4.0)
    source.depth[4:12, 4:6] = 4.5
    mixed, pasted = paste_at_depth(source, flat(16, 16, 50.0), mask, depth=5.0)
    assert sorted(set(mixed.depth[pasted].tolist())) == [5.0, 5.5]


def test_affine_mix_draws_one_object_within_its_bounds() -> None:
    source, mask = with_thing(slice(8, 11), slice(1, 4), depth=2.0, size=32)
    other, _ = with_thing(slice(12, 20), slice(20, 28), depth=5.0, size=32)
    other.depth[mask], other.labels[mask] = 2.0, THING
    mix = AffineMix((THING,), depths=(3.0, 6.0), shift=0.1, horizon=0.25)
    generator = torch.Generator().manual_seed(0)
    depths = set()
    for _ in range(15):
        mixed, pasted = mix(other, flat(32, 32, 50.0), generator)
        (depth,) = set(mixed.depth[pasted].tolist())
        assert 3.0 <= depth <= 6.0 and len(separate_objects(mixed.labels, (THING,))) == 1
        depths.add(depth)
    assert len(depths) == 15
    again = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    first, second = (mix(source, other, generator)[0] for generator in again)
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_affine_mix_without_objects_gives_the_target() -> None:
    target = flat(4, 4, 2.0)
    mixed, pasted = AffineMix((THING,), depths=(1.0, 2.0))(flat(4, 4, 1.0), target)
    assert mixed is target and not pasted.any()


def test_affine_mix_refuses() -> None:
    source, mask = with_thing(slice(4, 12), slice(4, 12), depth=4.0)
    with pytest.raises(SymbiosisError, match="differ in size"):
        paste_at_depth(source, flat(8, 8, 5.0), mask, 4.0)
    with pytest.raises(SymbiosisError, match="empty"):
        paste_at_depth(source, flat(16, 16, 5.0), torch.zeros_like(mask), 4.0)
    with pytest.raises(SymbiosisError, match="above 0"):
        paste_at_depth(source, flat(16, 16, 5.0), mask, 0.0)
    with pytest.raises(SymbiosisError, match="nearest first"):
        AffineMix((THING,), depths=(3.0, 2.0))
    with pytest.raises(SymbiosisError, match=r"Give \(3, H, W\)"):
        paste_at_depth(source._replace(picture=source.picture[:1]), flat(16, 16, 5.0), mask, 4.0)


# -- ColorAug


def test_colours_change_apart_and_depth_and_labels_not_at_all() -> None:
    scene, mask = with_thing(slice(4, 12), slice(4, 12), depth=4.0)
    before = [part.clone() for part in scene]
    changed = ColorAug((THING,), brightness=0.4, contrast=0, saturation=0, hue=0)(
        scene._replace(picture=torch.full((3, 16, 16), 0.5)), torch.Generator().manual_seed(0)
    )
    assert changed.depth is scene.depth and changed.labels is scene.labels
    assert all(part.equal(kept) for part, kept in zip(scene, before, strict=True))
    inside, outside = changed.picture[:, mask].unique(), changed.picture[:, ~mask].unique()
    assert len(inside) == len(outside) == 1 and abs(inside - outside) > 0.01
    assert 0.3 <= inside <= 0.7 and 0.3 <= outside <= 0.7


@pytest.mark.parametrize("amount", ["brightness", "contrast", "saturation", "hue"])
def test_each_amount_alone(amount: str) -> None:
    """What each one keeps of a picture of middling colours, so that nothing is cut off at 0 or 1."""
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    picture = 0.45 + 0.1 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    scene = flat(8, 8, 1.0)._replace(picture=picture)
    assert ColorAug((THING,), **none)(scene).picture.allclose(picture)
    changed = ColorAug((THING,), **{**none, amount: 0.3})(scene, torch.Generator().manual_seed(2)).picture
    assert not changed.allclose(picture, atol=1e-3)
    luma = torch.tensor(symbiosis.LUMA)
    grey, grey_changed = (torch.einsum("c,chw->hw", luma, one) for one in (picture, changed))
    if amount == "brightness":
        ratio = changed / picture
        torch.testing.assert_close(ratio, ratio[0, 0, 0].expand_as(ratio))
    elif amount == "contrast":
        torch.testing.assert_close(grey_changed.mean(), grey.mean())
        factor = (changed - grey.mean()) / (picture - grey.mean())
        torch.testing.assert_close(factor, factor[0, 0, 0].expand_as(factor), rtol=1e-3, atol=1e-3)
    elif amount == "saturation":
        torch.testing.assert_close(grey_changed, grey)
    else:
        torch.testing.assert_close(changed.sum(0), picture.sum(0))
        torch.testing.assert_close(changed.square().sum(0), picture.square().sum(0))


def test_turns_of_hue() -> None:
    turn = turn_of_hue(0.2).double()
    torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(turn @ torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.matrix_power(turn, 5), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(turn_of_hue(2 / 3) @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1]))


def test_the_picture_stays_in_range() -> None:
    scene, _ = with_thing(slice(4, 12), slice(4, 12), depth=4.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        picture = ColorAug((THING,), 1.0, 1.0, 1.0, 0.5)(scene, generator).picture
        assert picture.min() >= 0 and picture.max() <= 1 and picture.isfinite().all()


@pytest.mark.parametrize("settings", [{"brightness": 1.2}, {"contrast": -0.1}, {"saturation": 2.0}, {"hue": 0.6}])
def test_colour_refuses(settings: dict[str, float]) -> None:
    with pytest.raises(SymbiosisError, match="out of range"):
        ColorAug((THING,), **settings)
    with pytest.raises(SymbiosisError, match="floats"):
        scene = flat(4, 4, 1.0)
        ColorAug((THING,))(scene._replace(picture=scene.picture.to(torch.uint8)))


# -- the example


@pytest.mark.slow
def test_the_example_runs_in_short() -> None:
    command = [sys.executable, "examples/companions/symbiosis.py", "--seeds", "2", "--steps", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("all three") for line in lines) == 2 and "of one core" in lines[-1]
