"""Prompts from a family's own processor: clips keep all of their frames, at the times that foveate gives them."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from foveate.data.fallback_processor import FallbackProcessor
from foveate.data.prompts import FRAMES_A_SECOND, Prompt, encode_one
from foveate.models import adapter_of
from foveate.testbed import load_shipped, shipped_models

QWEN = "testbed-qwen2.5-vl"


def frames(number: int) -> list[Image.Image]:
    return [Image.new("RGB", (48, 56), (40 * one, 90, 200)) for one in range(number)]


class Spy:
    """A processor that remembers what it is given beside the conversation."""

    chat_template = "{{ messages }}"
    tokenizer = SimpleNamespace()

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def apply_chat_template(self, messages: Any, **given: Any) -> dict[str, Any]:
        self.given = given
        return {}


def test_a_processor_is_told_the_times_of_a_clips_frames_and_to_leave_none_out() -> None:
    spy = Spy()
    encode_one(spy, Prompt(frames(3), "What?", video=True))
    told = spy.given["processor_kwargs"]["videos_kwargs"]
    assert told["do_sample_frames"] is False
    (known,) = told["video_metadata"]
    assert known == {"total_num_frames": 3, "fps": 2.0, "duration": 1.5, "frames_indices": [0, 1, 2]}
    assert FRAMES_A_SECOND == 2.0
    encode_one(spy, Prompt(frames(1), "What?"))
    assert "processor_kwargs" not in spy.given


def test_the_shipped_model_treats_frames_as_it_does_pictures() -> None:
    read = [
        json.loads((shipped_models()[QWEN] / f"{kind}preprocessor_config.json").read_text(encoding="utf-8"))
        for kind in ("", "video_")
    ]
    of_pictures, of_clips = ({key: one[key] for key in one if "processor_type" not in key} for one in read)
    assert of_clips == of_pictures | {"do_sample_frames": False, "fps": FRAMES_A_SECOND}


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="the family's own processor needs it")
@pytest.mark.parametrize("number", [2, 5, 8])
def test_the_familys_own_processor_gives_a_clip_as_the_fallback_does(number: int) -> None:
    model, own = load_shipped(QWEN)
    assert not isinstance(own, FallbackProcessor)
    fallback = FallbackProcessor(own.tokenizer, own.image_processor, adapter_of(model))
    prompt = Prompt(frames(number), "What is there?", video=True)
    found, expected = encode_one(own, prompt), encode_one(fallback, prompt)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(torch.as_tensor(found[name]), value, rtol=0, atol=1e-5)
