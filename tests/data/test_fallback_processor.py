"""Prompts without torchvision: images and clips as the family's own processor would lay them out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import tiny_families
import tiny_models as zoo_module
from cli import checkpoint_files as checkpoints
from foveate.data.fallback_processor import FallbackProcessor
from foveate.data.loading import load
from foveate.data.prompts import Prompt, encode
from foveate.errors import ModelError
from foveate.models import adapter_of

TEMPLATE = (
    "{% for m in messages %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif p.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def processor(zoo: Any) -> FallbackProcessor:
    tokenizer = copy.deepcopy(zoo.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return FallbackProcessor(tokenizer, zoo.processor.image_processor, adapter_of(zoo.model))


def asked(zoo: Any, *parts: dict[str, Any]) -> dict[str, torch.Tensor]:
    return processor(zoo).apply_chat_template(
        [{"role": "user", "content": [*parts, {"type": "text", "text": "what?"}]}]
    )


def frames(number: int) -> list[Image.Image]:
    return [zoo_module.picture(56, 84, seed) for seed in range(number)]


def test_a_clip_of_equal_frames_is_a_still_repeated() -> None:
    zoo = zoo_module.qwen2_5_vl()
    frame = zoo_module.picture(56, 84)
    still, clip = asked(zoo, {"type": "image", "image": frame}), asked(zoo, {"type": "video", "video": [frame] * 4})
    assert clip["video_grid_thw"].tolist() == [[2, 4, 6]]
    assert torch.equal(clip["pixel_values_videos"], still["pixel_values"].repeat(2, 1))


def test_frames_of_a_group_lie_behind_each_other_in_a_patch() -> None:
    zoo = zoo_module.qwen2_5_vl()
    clip = asked(zoo, {"type": "video", "video": frames(4)})["pixel_values_videos"].view(2, 24, 3, 2, 196)
    for number, frame in enumerate(frames(4)):
        still = asked(zoo, {"type": "image", "image": frame})["pixel_values"].view(24, 3, 2, 196)
        assert torch.equal(clip[number // 2, :, :, number % 2], still[:, :, 0])


def test_an_odd_frame_is_repeated() -> None:
    zoo = zoo_module.qwen2_5_vl()
    three, four = frames(3), [*frames(3), frames(3)[-1]]
    made = [asked(zoo, {"type": "video", "video": clip}) for clip in (three, four)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[1])


def test_a_clip_and_an_image_in_one_prompt_are_answered() -> None:
    zoo = zoo_module.qwen2_5_vl()
    inputs = asked(zoo, {"type": "video", "video": frames(2)}, {"type": "image", "image": frames(1)[0]})
    assert [(inputs["mm_token_type_ids"] == kind).sum().item() for kind in (1, 2)] == [6, 6]
    assert zoo.model(**inputs).logits.isfinite().all()


def test_more_clips_than_a_prompt_has_tokens_are_answered() -> None:
    zoo = zoo_module.qwen2_5_vl()
    frame = zoo_module.picture(28, 28)
    prompts = [Prompt([frame, frame], "what?", video=True)] * 12
    inputs = encode(zoo.model, processor(zoo), prompts)
    assert inputs["input_ids"].shape[1] < len(prompts)
    answers = zoo.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert torch.equal(answers, answers[:1].expand_as(answers))


def test_a_prompt_without_pictures_is_text() -> None:
    inputs = asked(zoo_module.qwen2_5_vl())
    assert set(inputs) == {"input_ids", "attention_mask", "mm_token_type_ids"} and not inputs["mm_token_type_ids"].any()


def test_clips_whose_prompts_name_times_are_refused() -> None:
    with pytest.raises(ModelError, match="install torchvision"):
        asked(zoo_module.qwen3_vl(), {"type": "video", "video": frames(2)})


def test_placeholders_that_nothing_is_shown_for_are_refused() -> None:
    made = processor(zoo_module.qwen2_5_vl())
    picture = zoo_module.picture(56, 84)
    for text in ("<|image_pad|> <|image_pad|>", "none", "<|image_pad|> <|video_pad|>"):
        with pytest.raises(ModelError, match="leave it out of the question"):
            made(images=[picture], text=[text])
    with pytest.raises(ModelError, match="leave it out of the question"):
        made(images=None, text=["<|video_pad|>"])


def test_tiles_of_an_image_lie_behind_each_other_in_one_frame(tmp_path: Path) -> None:
    session = load(str(checkpoints.internvl(tmp_path / "internvl")))
    wide, small = zoo_module.picture(112, 224), zoo_module.picture(56, 56)
    inputs = session.inputs([wide, small], "what?")
    assert inputs["pixel_values"].shape[0] == 4  # two tiles and the whole, and the small one
    text = session.processor.tokenizer.decode(inputs["input_ids"][0])
    frames = [part.count("<IMG_CONTEXT>") for part in text.split("<img>")[1:]]
    assert frames == [3 * 16, 16] and text.count("</img>") == 2
    assert session.generate(inputs, 2) is not None


def test_where_clips_share_the_placeholder_of_images_a_picture_is_a_picture() -> None:
    zoo = tiny_families.glm4v()
    tokenizer = copy.deepcopy(zoo.tokenizer)
    tokenizer.chat_template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", zoo.image)
    own = FallbackProcessor(tokenizer, zoo.processor.image_processor, adapter_of(zoo.model))
    content = [{"type": "image", "image": zoo_module.picture(84, 112, 0)}, {"type": "text", "text": "what?"}]
    inputs = own.apply_chat_template([{"role": "user", "content": content}])
    assert inputs["mm_token_type_ids"].unique().tolist() == [0, 1] and int(inputs["mm_token_type_ids"].sum()) == 12
    assert zoo.model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "llava_next_video"])
def test_pictures_of_several_grids_are_one_placeholder_of_the_template(family: str) -> None:
    """As many placeholders as the model makes features, newlines included; OneVision cuts no tiles of several."""
    zoo = getattr(tiny_families, family)()
    tokenizer = copy.deepcopy(zoo.tokenizer)
    tokenizer.chat_template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    own = FallbackProcessor(tokenizer, zoo.processor.image_processor, adapter_of(zoo.model))
    pictures = [zoo_module.picture(84, 112, 0), zoo_module.picture(200, 40, 1)]
    for number in (1, 2):
        content: list[dict[str, Any]] = [{"type": "image", "image": one} for one in pictures[:number]]
        inputs = own.apply_chat_template([{"role": "user", "content": [*content, {"type": "text", "text": "what?"}]}])
        inputs.pop("mm_token_type_ids", None)
        assert zoo.model(**inputs).logits.isfinite().all()


@pytest.mark.skipif(not hasattr(transformers, "MiniCPMV4_6ForConditionalGeneration"), reason="not in this release")
def test_slices_need_tags_that_only_their_own_processor_writes() -> None:
    z, picture = tiny_families.minicpmv4_6(), zoo_module.picture(224, 224)
    for sliced in (False, True):
        images = transformers.MiniCPMV4_6ImageProcessorPil(slice_mode=sliced, scale_resolution=112)
        fallback = FallbackProcessor(z.tokenizer, images, adapter_of(z.model))
        if sliced:
            with pytest.raises(ModelError, match="slice_mode=False"):
                fallback(images=[picture], text=["<|image_pad|>what is it?"])
        else:
            assert "input_ids" in fallback(images=[picture], text=["<|image_pad|>what is it?"])
