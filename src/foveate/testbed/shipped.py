"""The scenes that come with foveate: the first of the test split, drawn once, so that showing them needs no extra.

`scripts/draw_scenes.py` draws and writes them with `draw` and `write`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.boxes import Box
from .layout import Item
from .procedural import Scene, generate
from .questions import LARGEST, Question

FOLDER = Path(__file__).parent / "scenes"
KINDS = {"objects": 8, "page": 2, "chart": 2}  # of twelve stills, about as many as the generator draws
QUESTIONS = 6  # of a scene, at most
FAMILIES = ("attributes", "counting", "existence", "relation", "reading", "charts")
PHOTOS = {  # of the test split, those whose licence lets parts of them be shipped
    "camera": "CC0, by Lav Varshney",
    "coffee": "CC0, by Rachel Michetti",
    "gravel": "CC0, from CC0Textures",
    "rocket": "public domain, by SpaceX",
}
_LIST = "scenes.jsonl"


def scenes() -> list[Scene]:
    """The twelve scenes, 112 x 112 pixels each, with up to six questions each."""
    lines = (FOLDER / _LIST).read_text(encoding="utf-8").splitlines()
    return [_scene(json.loads(line)) for line in lines]


def draw() -> list[Scene]:
    """The same scenes, drawn anew: of each kind the first of the test split with seed 0, in their order.

    Scenes on a photograph whose licence is not known are left out. The families of a scene's questions take turns; a
    question that only puts another into other words is left out.

    Raises:
        TestbedError: when scikit-image, scikit-learn or matplotlib is missing.
    """
    missing = dict(KINDS)
    found: list[Scene] = []
    for index in itertools.count():
        if not any(missing.values()):
            break
        scene = generate("test", 0, index, size=(LARGEST, LARGEST))
        if missing[scene.kind] and (not scene.photo or scene.photo in PHOTOS):
            missing[scene.kind] -= 1
            found.append(replace(scene, questions=_some(scene.questions)))
    return found


def _some(questions: Sequence[Question]) -> tuple[Question, ...]:
    """The first `QUESTIONS` that differ in what they ask, the families taking turns."""
    turns: list[tuple[int, Question]] = []
    for question in questions:
        before = [other for _, other in turns if other.family == question.family]
        known = any((other.boxes, other.answer) == (question.boxes, question.answer) for other in before)
        if question.family in FAMILIES and not known:
            turns.append((len(before), question))
    turns.sort(key=lambda one: one[0])  # stable: of one turn, as they were asked
    return tuple(question for _, question in turns[:QUESTIONS])


def write(drawn: Sequence[Scene], folder: Path) -> None:
    """Write stills with all that is known of them into an existing folder, as `scenes` reads them."""
    lines = []
    for number, scene in enumerate(drawn):
        name = f"{number:02}.png"
        scene.image.save(folder / name, optimize=True)
        told: dict[str, Any] = {"image": name, "kind": scene.kind, "photo": scene.photo}
        told |= {"questions": list(map(_plain, scene.questions)), "items": list(map(_plain, scene.items))}
        lines.append(json.dumps(told) + "\n")
    (folder / _LIST).write_text("".join(lines), encoding="utf-8")


def _plain(thing: Question | Item) -> dict[str, Any]:
    """What a question or an item says, without what it leaves as it is by default."""
    default = {field.name: field.default for field in fields(thing)}
    return {name: value for name, value in asdict(thing).items() if value != default[name]}


def _scene(told: dict[str, Any]) -> Scene:
    with Image.open(FOLDER / told["image"]) as picture:
        frames = (picture.convert("RGB"),)
    items = [
        Item(**one | {"boxes": _boxes(one["boxes"]), "glyphs": _boxes(one.get("glyphs", ()))}) for one in told["items"]
    ]
    questions = [
        Question(**one | {"boxes": tuple(map(_boxes, one["boxes"])), "names": tuple(one.get("names", ()))})
        for one in told["questions"]
    ]
    return Scene(told["kind"], frames, tuple(items), tuple(questions), told["photo"])


def _boxes(told: Sequence[Sequence[float]]) -> tuple[Box, ...]:
    return tuple((float(left), float(top), float(right), float(bottom)) for left, top, right, bottom in told)
