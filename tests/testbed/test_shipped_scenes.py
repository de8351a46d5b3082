"""The scenes that come with foveate: what the generator draws, with true answers, and free to be shipped."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from foveate.data import Prompt, answer, answers
from foveate.data.metrics import agrees
from foveate.testbed import Scene, generate, load_shipped, scenes
from foveate.testbed.shipped import FAMILIES, FOLDER, PHOTOS, draw, write
from testbed.test_procedural import READINGS


def test_scenes_and_questions() -> None:
    known = scenes()
    assert Counter(scene.kind for scene in known) == {"objects": 8, "page": 2, "chart": 2}
    assert all(scene.image.size == (112, 112) and scene.image.mode == "RGB" for scene in known)
    families = Counter(question.family for scene in known for question in scene.questions)
    assert set(families) == set(FAMILIES) and families.total() == 70 and min(families.values()) >= 7
    assert all(isinstance(scene, Scene) for scene in known)


def test_they_are_what_the_generator_draws(tmp_path: Path) -> None:
    """Those that the script writes: pictures to the pixel, and all that is known of them."""
    drawn, known = draw(), scenes()
    assert [one.image.tobytes() for one in drawn] == [one.image.tobytes() for one in known]
    for one, other in zip(drawn, known, strict=True):
        assert (one.kind, one.photo, one.items, one.questions) == (
            other.kind,
            other.photo,
            other.items,
            other.questions,
        )
    first = generate("test", 0, 0, size=(112, 112))
    assert first.image.tobytes() == known[0].image.tobytes() and set(known[0].questions) < set(first.questions)
    write(drawn, tmp_path)
    assert (tmp_path / "scenes.jsonl").read_bytes() == (FOLDER / "scenes.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in FOLDER.iterdir()} - {"README.md"}


def test_every_answer_is_true() -> None:
    for scene in scenes():
        for question in scene.questions:
            assert READINGS[question.family](scene, question.text) == question.answer, question


def test_what_they_show_may_be_shipped() -> None:
    notice = (FOLDER / "README.md").read_text()
    for scene in scenes():
        assert (scene.photo in PHOTOS) == (scene.kind == "objects") and bool(scene.photo) == (scene.kind == "objects")
    assert all(f"| {name} | {licence} |" in notice for name, licence in PHOTOS.items())


def test_showing_them_needs_no_extra() -> None:
    code = (
        "import sys\nfor name in ('skimage', 'sklearn', 'matplotlib', 'scipy'): sys.modules[name] = None\n"
        "from foveate.testbed import scenes\nassert len(scenes()) == 12"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_default_model_is_mostly_right() -> None:
    model, processor = load_shipped()
    asked = [(scene, question) for scene in scenes() for question in scene.questions]
    said = answers(model, processor, [Prompt([scene.image], question.text) for scene, question in asked])
    right = sum(agrees("exact", text, question.answer) for text, (_, question) in zip(said, asked, strict=True))
    assert right / len(asked) >= 0.85


def test_a_batch_answers_like_one_at_a_time() -> None:
    model, processor = load_shipped()
    assert not model.training and model.dtype == torch.float32 and processor.tokenizer.padding_side == "left"
    scene = scenes()[0]
    together = answers(model, processor, [Prompt([scene.image], question.text) for question in scene.questions])
    assert together == [answer(model, processor, scene.image, question.text) for question in scene.questions]
    upper = scene.questions[0].text.capitalize()
    assert answer(model, processor, [scene.image], upper) == together[0]
