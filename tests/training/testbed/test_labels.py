"""Dense labels against looking each token's middle up in the list of things."""

from __future__ import annotations

import pytest

from foveate.testbed.layout import BAR, PATTERN
from foveate.testbed.procedural import CELL, KINDS, Scene, generate
from foveate.training.testbed.labels import CHARACTERS, CLASSES, THINGS, TINTS, label

SIDES = ("x0", "y0", "x1", "y1")


def looked_up(scene: Scene, frame: int, row: int, column: int) -> dict[str, int]:
    x, y = (column + 0.5) * CELL, (row + 0.5) * CELL
    found = dict.fromkeys(CLASSES, 0)
    for item in scene.items:
        if item.noun == PATTERN:
            continue
        x0, y0, x1, y1 = item.boxes[frame]
        found["centre"] |= (int((x0 + x1) / 2 // CELL), int((y0 + y1) / 2 // CELL)) == (column, row)
        if not (x0 <= x < x1 and y0 <= y < y1):
            continue
        found["thing"] = 1 + THINGS.index(item.noun)
        found["colour"] = 1 + TINTS.index(item.colour_at(frame))
        found |= {name: int(side / 4 + 0.5) for name, side in zip(SIDES, item.boxes[frame], strict=True)}
        found["value"] = int(item.text) if item.noun == BAR else 0
        for place, (character, glyph) in enumerate(zip(item.text.replace(" ", ""), item.glyphs, strict=False)):
            if glyph[0] <= x < glyph[2] and glyph[1] <= y < glyph[3]:
                found |= {"character": 1 + CHARACTERS.index(character), "place": 1 + place}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_shows_what_its_middle_shows(kind: str) -> None:
    for index in range(4):
        scene = generate("train", 1, index, kind)
        rows, columns = scene.frames[0].height // CELL, scene.frames[0].width // CELL
        labels = dict(label([scene], rows, columns).items())
        times = max(1, len(scene.frames) // 2)
        for token in range(times * rows * columns):
            time, place = divmod(token, rows * columns)
            expected = looked_up(scene, 2 * time, *divmod(place, columns))
            assert {name: int(values[0, token]) for name, values in labels.items()} == expected


def test_every_character_is_seen_by_some_token() -> None:
    for index in range(10):
        scene = generate("train", 2, index, "page")
        rows, columns = scene.frames[0].height // CELL, scene.frames[0].width // CELL
        seen = label([scene], rows, columns)
        for item in scene.items:
            tinted = seen.colour[0] == 1 + TINTS.index(item.colour)
            assert set(seen.place[0][tinted].tolist()) >= set(range(1, len(item.glyphs) + 1))


def test_what_lies_beyond_the_picture_is_nothing() -> None:
    scene = generate("train", 1, 0, "objects", (48, 64))
    wide, narrow = label([scene], 14, 14), label([scene], 6, 8)
    for (_, padded), (_, own) in zip(wide.items(), narrow.items(), strict=True):
        canvas = padded.view(14, 14)
        assert canvas[:6, :8].equal(own.view(6, 8))
        assert not canvas[6:].any() and not canvas[:, 8:].any()
