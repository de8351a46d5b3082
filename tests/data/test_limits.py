"""What processors cannot take, against what they really hand over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

import tiny_models as zoo_module
from foveate.data.images import PictureError
from foveate.data.limits import QuestionError, fit_picture, list_words
from foveate.data.loading import LoadedModel, load
from foveate.data.prompts import Prompt, encode_one
from foveate.errors import FoveateError, ModelError

SQUARE = {"height": 56, "width": 56}


@pytest.fixture(scope="module")
def llava() -> LoadedModel:
    return load("testbed-llava")


@pytest.fixture(scope="module")
def qwen() -> LoadedModel:
    return load("testbed-qwen2.5-vl")


@pytest.mark.parametrize("size", [(512, 512), (113, 20), (3000, 4), (1, 499)])
def test_a_processor_that_only_pads_gets_large_pictures_scaled_down(llava: LoadedModel, size: tuple[int, int]) -> None:
    inputs = llava.inputs([Image.new("RGB", size, (200, 30, 30))], "What colour is the star?")
    assert inputs["pixel_values"].shape == (1, 3, 112, 112)
    shown = (inputs["pixel_values"][0] != 0).any(0)
    want = [max(1, round(side * 112 / max(size))) for side in size]
    assert [int(shown.any(axis).sum()) for axis in (0, 1)] == want


def test_what_fits_is_not_touched(llava: LoadedModel) -> None:
    for size in ((112, 112), (40, 20)):
        picture = Image.new("RGB", size)
        assert fit_picture(llava.processor, picture) is picture


def test_the_middle_of_very_long_pictures_is_what_a_crop_to_the_centre_leaves() -> None:
    images = tf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE)
    ramp = np.tile(np.linspace(0, 255, 4001).astype(np.uint8)[:, None, None], (1, 4, 3))
    for array in (ramp, ramp.transpose(1, 0, 2)):
        whole = Image.fromarray(array)
        part = fit_picture(SimpleNamespace(image_processor=images), whole)
        assert max(part.size) <= 4 * 32 + 1
        given = [images(images=one, return_tensors="pt")["pixel_values"] for one in (whole, part)]
        assert (given[0] - given[1]).abs().max() < 0.02


def test_pictures_of_any_mode_are_shown_as_viewers_show_them(llava: LoadedModel, qwen: LoadedModel) -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    for session in (llava, qwen):
        made, white = (session.inputs([one], "What?") for one in (clear, Image.new("RGB", (64, 64), "white")))
        assert torch.equal(made["pixel_values"], white["pixel_values"])


def test_a_picture_that_a_processor_cannot_take_is_named(qwen: LoadedModel) -> None:
    fine, wide = Image.new("RGB", (56, 56)), Image.new("RGB", (3000, 4))
    with pytest.raises(PictureError, match=r"picture 2 of the prompt: .* 3000 x 4 pixels .*aspect ratio"):
        qwen.inputs([fine, wide], "What?")
    wide.filename = "photos/wide.png"  # type: ignore[attr-defined]
    with pytest.raises(PictureError, match=r"photos/wide.png: "):
        qwen.inputs([fine, wide], "What?")
    with pytest.raises(PictureError, match="3000 x 4"):
        encode_one(qwen.processor, Prompt([wide, wide], "What?", video=True))


def test_a_processor_that_fails_otherwise_ends_in_a_sentence(
    qwen: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise StopIteration

    monkeypatch.setattr(qwen.processor, "apply_chat_template", fails)
    with pytest.raises(ModelError, match=r"cannot make inputs of this prompt .StopIteration"):
        qwen.inputs([Image.new("RGB", (56, 56))], "What?")


def test_placeholders_in_a_question_are_refused(llava: LoadedModel, qwen: LoadedModel) -> None:
    picture = Image.new("RGB", (56, 56))
    cases: list[tuple[Any, list[str]]] = [(llava, ["<image>"]), (qwen, ["<|image_pad|>", "<|video_pad|>"])]
    for session, tokens in cases:
        for token in tokens:
            for pictures in ([picture], [picture, picture], []):
                with pytest.raises(QuestionError, match=r"leave it out"):
                    session.inputs(pictures, f"What is {token}?")
    assert qwen.inputs([picture], "What is an <image>?")["input_ids"].numel()  # no placeholder of this model's


@pytest.mark.parametrize("make", zoo_module.MAKERS)
def test_placeholders_are_refused_in_every_family(make: Any) -> None:
    zoo = make()
    token = zoo.processor.image_token
    with pytest.raises(FoveateError, match="leave it out"):
        encode_one(zoo.processor, Prompt([Image.new("RGB", (56, 56))], f"{token} What?"))


def test_bytes_that_are_not_text_are_refused_by_name(llava: LoadedModel) -> None:
    question = b"What colour \xff?".decode(errors="surrogateescape")  # as Python hands over arguments of the shell
    with pytest.raises(QuestionError, match=r"holds '\\udcff', which is not text; write it in UTF-8"):
        llava.inputs([Image.new("RGB", (8, 8))], question)


def test_long_lists_of_words_are_cut() -> None:
    assert list_words(["zebra", "it's"]) == "'zebra', \"it's\""
    assert list_words(["a" * 10_000]) == repr("a" * 39 + "…")
    assert list_words(list("abcdefghij")).endswith("'h' and 2 more words")
