"""Generated scenes: the same from the same numbers, splits apart, and answers that a second reading confirms."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from foveate.data.boxes import box_of, iou
from foveate.testbed import sources
from foveate.testbed.architectures import MODELS, tokenizer
from foveate.testbed.layout import PATTERN, Item
from foveate.testbed.lexicon import COLOURS, NOUNS, PHRASES, SIDES, plural, words
from foveate.testbed.procedural import CELL, KINDS, Scene, generate
from foveate.testbed.questions import FAMILIES, Question
from foveate.testbed.sources import SPLITS, TestbedError, handwriting, photos

MANY = 60


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate("test", 7, index, kind) for kind in KINDS for index in range(MANY)]


def asked(scenes: list[Scene]) -> Iterator[tuple[Scene, Question]]:
    return ((scene, question) for scene in scenes for question in scene.questions)


def test_the_same_numbers_give_the_same_scene() -> None:
    first = [generate("test", 3, index) for index in range(6)]
    again = [generate("test", 3, index) for index in reversed(range(6))][::-1]
    for one, other in zip(first, again, strict=True):
        assert [frame.tobytes() for frame in one.frames] == [frame.tobytes() for frame in other.frames]
        assert (one.items, one.questions) == (other.items, other.questions)


@pytest.mark.parametrize("numbers", [("validation", 3, 0), ("test", 4, 0), ("test", 3, 1)])
def test_other_numbers_give_another_scene(numbers: tuple[str, int, int]) -> None:
    other, one = generate(*numbers), generate("test", 3, 0)
    assert (other.kind, other.items, other.questions) != (one.kind, one.items, one.questions)


def test_splits_share_neither_photographs_nor_handwriting_nor_words() -> None:
    for kind in (
        lambda split: {photo.tobytes() for photo in photos(split)},
        lambda split: {sample.tobytes() for samples in handwriting(split).values() for sample in samples},
        lambda split: set(words(split)),
    ):
        parts = [kind(split) for split in SPLITS]
        assert all(parts)
        assert len(set().union(*parts)) == sum(map(len, parts))


def test_frames_are_whole_cells_and_hold_everything(scenes: list[Scene]) -> None:
    for scene in scenes:
        width, height = scene.frames[0].size
        assert all(frame.size == (width, height) and frame.mode == "RGB" for frame in scene.frames)
        assert width % CELL == height % CELL == 0 and max(width, height) <= 112
        assert len(scene.frames) == 1 if scene.kind != "clip" else 4 <= len(scene.frames) <= 8
        for item in scene.items:
            assert len(item.boxes) == len(scene.frames)
            for x0, y0, x1, y1 in item.boxes:
                assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def test_things_are_apart_off_the_grid_and_of_all_sizes(scenes: list[Scene]) -> None:
    things = [scene for scene in scenes if scene.kind == "objects"]
    for scene in things:
        boxes = [item.box for item in scene.items]
        assert all(iou(a, b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])
    items = [item for scene in things for item in scene.items if item.noun != PATTERN]
    assert {item.noun for item in items} == set(NOUNS) and {item.colour for item in items} == set(COLOURS)
    widths = [item.box[2] - item.box[0] for item in items]
    assert min(widths) < 10 and max(widths) > 36 and all(8 <= width <= 40 for width in widths)
    assert len({item.box[0] % CELL for item in items}) == CELL


def test_small_and_rectangular_pictures_stand_beside_full_ones(scenes: list[Scene]) -> None:
    sizes = Counter(scene.frames[0].size for scene in scenes if scene.kind == "objects")
    assert MANY / 4 < sizes[112, 112] < 3 * MANY / 4
    assert any(width != height for width, height in sizes) and min(min(size) for size in sizes) <= 40


def test_every_family_is_asked_in_many_ways(scenes: list[Scene]) -> None:
    assert {question.family for _, question in asked(scenes)} == set(FAMILIES)
    assert all(len(ways) >= 4 for ways in PHRASES.values())


def test_patterns_are_there_and_never_asked_about(scenes: list[Scene]) -> None:
    seen = 0
    for scene in scenes:
        patterns = {box for item in scene.items if item.noun == PATTERN for box in item.boxes}
        seen += len(patterns)
        assert not any(patterns & set(boxes) for q in scene.questions for boxes in q.boxes)
    assert seen > MANY


@pytest.mark.parametrize("model", MODELS)
def test_the_tokenizer_knows_every_word(scenes: list[Scene], model: str) -> None:
    known = tokenizer(model)
    for _, question in asked(scenes):
        for text in (question.text, question.answer):
            assert known.unk_token_id not in known(text, add_special_tokens=False)["input_ids"], text


def test_no_family_can_be_guessed() -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(400):
        for question in generate("test", 11, index, "clip" if index % 5 == 0 else None).questions:
            answers[question.family][question.answer] += 1
    best = {family: max(seen.values()) / seen.total() for family, seen in answers.items()}
    assert best["existence"] < 0.56
    assert max(share for family, share in best.items() if family != "existence") < 0.36
    assert sum(best.values()) / len(best) < 0.25


# a second reading of every question


def named(scene: Scene, text: str) -> list[Item]:
    """The things that "the red star", "the star" or "the red thing" can mean."""
    colour = next((c for c in COLOURS if re.search(rf"\b{c}\b", text)), None)
    noun = next((n for n in NOUNS if re.search(rf"\b{n}\b", text)), None)
    assert colour or noun, text
    return [
        item
        for item in scene.items
        if item.noun != PATTERN and colour in (None, item.colour) and noun in (None, item.noun)
    ]


def the_one(scene: Scene, text: str) -> Item:
    (item,) = named(scene, text)
    return item


def attribute(scene: Scene, text: str) -> str:
    item = the_one(scene, text)
    return item.colour if re.search(r"\b(colour|paint|painted)\b", text) else item.noun


def count(scene: Scene, text: str) -> str:
    for noun in NOUNS:
        text = re.sub(rf"\b{plural(noun)}\b", noun, text)
    return str(len(named(scene, text)))


def existence(scene: Scene, text: str) -> str:
    return "yes" if named(scene, text) else "no"


def relation(scene: Scene, text: str) -> str:
    names = re.findall(rf"the (?:(?:{'|'.join(COLOURS)}) )?(?:thing|{'|'.join(NOUNS)})", text)
    a, b = (the_one(scene, name) for name in names)
    if re.match(r"on which|from|relative|compared|looking", text):
        a, b = b, a
    return f"{'lower' if a.centre[1] > b.centre[1] else 'upper'} {'right' if a.centre[0] > b.centre[0] else 'left'}"


def reading(scene: Scene, text: str) -> str:
    if scene.kind == "page":
        (colour,) = (c for c in COLOURS if re.search(rf"\b{c}\b", text))
        return next(item.text for item in scene.items if item.colour == colour)
    return the_one(scene, text).text


def chart(scene: Scene, text: str) -> str:
    heights = {item.colour: item.box[3] - item.box[1] for item in scene.items}
    if re.search(r"highest|largest|rises above", text):
        return max(heights, key=lambda colour: heights[colour])
    if re.search(r"lowest|smallest|stays below", text):
        return min(heights, key=lambda colour: heights[colour])
    item = the_one(scene, text)
    return item.text


def clip(scene: Scene, text: str) -> str:
    item = the_one(scene, text)
    if re.search(r"colour", text):
        first = re.search(r"\b(was|start|from|first|before)\b", text)
        return item.colour if first or not item.becomes else item.becomes
    across, down = item.boxes[-1][0] - item.boxes[0][0], item.boxes[-1][1] - item.boxes[0][1]
    return {(1, 0): "right", (-1, 0): "left", (0, 1): "down", (0, -1): "up"}[int(np.sign(across)), int(np.sign(down))]


READINGS: dict[str, Callable[[Scene, str], str]] = {
    "attributes": attribute,
    "counting": count,
    "existence": existence,
    "relation": relation,
    "reading": reading,
    "charts": chart,
    "clips": clip,
}


@pytest.mark.parametrize("family", READINGS)
def test_answers_are_true(scenes: list[Scene], family: str) -> None:
    found = [(scene, question) for scene, question in asked(scenes) if question.family == family]
    assert len(found) > 30
    for scene, question in found:
        assert READINGS[family](scene, question.text) == question.answer, question


def test_boxes_are_those_of_the_things_named(scenes: list[Scene]) -> None:
    found = [(scene, question) for scene, question in asked(scenes) if question.family == "localisation"]
    assert len(found) > 30
    for scene, question in found:
        box = the_one(scene, question.text).box
        said = box_of(question.answer)
        assert question.metric == "iou" and question.boxes == ((box,),)
        assert said is not None and iou(said, box) > 0.5
        assert max(abs(a - b) for a, b in zip(said, box, strict=True)) <= 2


def test_bars_end_where_their_value_stands() -> None:
    """Bars are as high as their values say: one step of pixels for each, whatever the chart."""
    for index in range(MANY):
        steps = {(i.box[3] - i.box[1]) / int(i.text) for i in generate("test", 2, index, "chart").items}
        assert len(steps) == 1 and 8 <= steps.pop() <= 11


def test_relations_are_even(scenes: list[Scene]) -> None:
    answers = Counter(question.answer for _, question in asked(scenes) if question.family == "relation")
    assert set(answers) == set(SIDES) and max(answers.values()) < 0.4 * answers.total()


@pytest.mark.parametrize(("numbers", "message"), [(("exam", 0, 0), "split 'exam'"), (("test", 0, 0, "map"), "'map'")])
def test_unknown_names_are_refused(numbers: Any, message: str) -> None:
    with pytest.raises(TestbedError, match=message):
        generate(*numbers)


def test_without_its_extra_the_way_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        if name.startswith("skimage"):
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr(sources, "import_module", without)
    photos.cache_clear()
    with pytest.raises(TestbedError, match=r"foveate\[testbed\]\); run: pip install scikit-image"):
        generate("test", 0, 0, "objects")


def test_hard_scenes_are_full_of_small_print_and_many_like_things() -> None:
    hard = [generate("hard", 7, index, kind) for kind in ("objects", "page", "chart") for index in range(25)]
    again = generate("hard", 7, 3, "objects")
    assert (again.items, again.questions) == (hard[3].items, hard[3].questions)
    assert again.items != generate("test", 7, 3, "objects").items
    assert {scene.photo for scene in hard} - {""} <= set(sources.photo_names("test"))
    assert all(scene.image.size == (112, 112) for scene in hard)
    usual = [generate("test", 7, index, "objects", (112, 112)) for index in range(25)]
    things = [np.mean([len(scene.items) for scene in drawn]) for drawn in (usual, hard[:25])]
    kinds = [
        np.mean([len({(i.noun, i.colour) for i in scene.items}) for scene in drawn]) for drawn in (usual, hard[:25])
    ]
    assert things[1] > 1.3 * things[0] and kinds[1] / things[1] < kinds[0] / things[0]
    for scene in hard:
        small = [item for item in scene.items if item.noun not in ("sign", "line", "bar")]
        assert all(item.box[2] - item.box[0] < 15 for item in small)
        assert all(
            len(item.text) >= 7 and item.box[3] - item.box[1] == 9 for item in scene.items if item.noun == "line"
        )
        assert not {item.text for item in scene.items if item.text.isalpha()} - set(words("test"))
        for question in scene.questions:
            assert question.family != "counting" or int(question.answer) == len(question.boxes[0]) >= 2
            assert question.family != "reading" or len(question.answer) >= 3
    with pytest.raises(TestbedError, match="no clips"):
        generate("hard", 7, 0, "clip")
