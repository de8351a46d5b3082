"""The bundled model and scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveate
from foveate.importance import find_prior
from foveate.testbed import QuestionError, answer, answers, bundled_path, encode, fitted, load_bundled, scenes


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return load_bundled()


def test_scenes_and_questions() -> None:
    known = scenes()
    assert len(known) == 12
    assert sum(len(scene.questions) for scene in known) == 75
    assert all(scene.image.size == (112, 112) and scene.image.mode == "RGB" for scene in known)
    assert {q.family for scene in known for q in scene.questions} >= {"colour", "kind", "at", "count", "exist"}


def test_the_model_is_mostly_right(pair: tuple[Any, Any]) -> None:
    asked = [(scene, question) for scene in scenes() for question in scene.questions]
    said = answers(*pair, [([scene.image], question.question) for scene, question in asked])
    right = sum(text == question.answer for text, (_, question) in zip(said, asked, strict=True))
    assert right / len(asked) >= 0.85


def test_a_batch_answers_like_one_at_a_time(pair: tuple[Any, Any]) -> None:
    scene = scenes()[0]
    together = answers(*pair, [([scene.image], question.question) for question in scene.questions])
    assert together == [answer(*pair, scene.image, question.question) for question in scene.questions]


def test_any_picture_is_fitted(pair: tuple[Any, Any]) -> None:
    photo = Image.new("RGBA", (640, 301), "navy")
    assert fitted(photo).size == (112, 112)
    assert answer(*pair, [photo, photo], "count star")


def test_prompt_format(pair: tuple[Any, Any]) -> None:
    processor = pair[1]
    ids = encode(processor, [([scenes()[0].image], "Colour  star")])["input_ids"][0].tolist()
    vocabulary = processor.tokenizer.get_vocab()
    expected = [vocabulary["<bos>"], *[vocabulary["<image>"]] * 196, vocabulary["colour"], vocabulary["star"]]
    assert ids == expected


@pytest.mark.parametrize("question", ["what is this?", "colour zebra", "<eos> star", ""])
def test_unknown_words_list_the_forms(pair: tuple[Any, Any], question: str) -> None:
    with pytest.raises(QuestionError, match="colour KIND"):
        answer(*pair, scenes()[0].image, question)


def test_bundled_path_is_a_checkpoint() -> None:
    assert (bundled_path() / "model.safetensors").is_file()


def test_the_bundled_model_brings_its_prior(
    pair: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path))  # so that no prior calibrated on this machine is found instead
    model, processor = pair
    prior = find_prior(str(bundled_path()), 2)
    assert prior is not None
    assert (prior.model, prior.layer, prior.images, tuple(prior.map.shape)) == ("bundled", 2, 1000, (14, 14))
    scene = scenes()[0]
    kept = {}
    for debias in (True, False):
        with foveate.prune(model, "d2pruner", keep=0.25, debias=debias) as pruning:
            answer(model, processor, scene.image, scene.questions[0].question)
            kept[debias] = pruning.report().images[0].kept
    assert kept[True].sum() == kept[False].sum() == 49
    assert not torch.equal(kept[True], kept[False])
