"""What a model's processor cannot take: pictures are made to fit where that is right, and refused by name elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..errors import FoveateError, ModelError, first_line
from .images import PictureError, name_of, to_rgb

_AREA = 10_000  # pixels: more than any side of a picture is resized to, less than what areas are limited to
_LONGEST = 32  # times as long as wide: of more, a processor that crops to the centre would not see the ends anyway
_FEW_WORDS, _LONG_WORD = 8, 40  # of a question, repeated in a sentence


class QuestionError(FoveateError, ValueError):
    """The question holds a text that stands for a picture in the model's prompts, or what is not text."""


def placeholders(processor: Any) -> list[str]:
    """The texts that stand for a picture or a clip in the prompts of a model with this processor."""
    tokens = (getattr(processor, name, None) for name in ("image_token", "video_token"))
    return [str(token) for token in tokens if token]


def check_question(processor: Any, question: str) -> None:
    """Raise QuestionError where a question holds what is not text, or is taken for a picture or a clip."""
    if halves := re.findall("[\ud800-\udfff]", question):  # so Python keeps bytes that are not UTF-8; no tokenizer can
        raise QuestionError(f"the question holds {halves[0]!r}, which is not text; write it in UTF-8.")
    for token in placeholders(processor):
        if token in question:
            raise QuestionError(
                f"the question holds {token!r}, which stands for a picture in this model's prompts; leave it out: "
                "the pictures go before the question by themselves."
            )


def unknown_words(tokenizer: Any, question: str) -> list[str]:
    """The words of a question that a tokenizer of words has none for; empty for those that can write anything.

    Upper case is taken for lower case, as chat templates of such tokenizers do.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    words = dict.fromkeys(re.findall(r"[\w'-]+", question))
    if unknown is None:
        return []
    return [word for word in words if unknown in tokenizer(word.lower(), add_special_tokens=False)["input_ids"]]


def list_words(words: Sequence[str]) -> str:
    """Words for a sentence, in quotes: the first few, and the beginning of long ones."""
    shown = [word if len(word) <= _LONG_WORD else word[: _LONG_WORD - 1] + "…" for word in words[:_FEW_WORDS]]
    more = f" and {len(words) - _FEW_WORDS} more words" if len(words) > _FEW_WORDS else ""
    return ", ".join(map(repr, shown)) + more


def fit_picture(processor: Any, picture: Image.Image) -> Image.Image:
    """The picture as a viewer shows it, in a size that the processor takes.

    A processor that pads pictures without resizing them gets larger ones scaled down; one that crops to the centre gets
    the middle of those that are very long. Others get the whole.

    Raises:
        PictureError: when it cannot be shown.
    """
    picture = to_rgb(picture)
    images = getattr(processor, "image_processor", None)
    if (room := padding_size(images)) is not None:
        scale = min(room[0] / picture.width, room[1] / picture.height)
        if scale < 1:
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            return _with_name(picture, picture.resize(size, Image.Resampling.BICUBIC))
    if getattr(images, "do_center_crop", False) and getattr(images, "do_resize", False):
        short = min(picture.size)
        # an even number of pixels less, so that the centre stays where it is
        left, top = (max(0, length - _LONGEST * short) // 2 for length in picture.size)
        if left or top:
            return _with_name(picture, picture.crop((left, top, picture.width - left, picture.height - top)))
    return picture


def padding_size(image_processor: Any) -> tuple[int, int] | None:
    """Width and height that an image processor pads pictures to as they are; None for one that resizes or does not."""
    size = getattr(image_processor, "pad_size", None)
    if not size or not getattr(image_processor, "do_pad", False) or getattr(image_processor, "do_resize", False):
        return None
    return size["width"], size["height"]


def limit_pixels(processor: Any, most: int | None, least: int | None = None) -> None:
    """Let a model's processor scale pictures to at most and at least so many pixels; clips, counted whole, stay.

    Args:
        processor: of a family that keeps a picture's own size.
        most: of a picture; None leaves it to the processor.
        least: likewise; at most as many as `most` where it is None.

    Raises:
        ModelError: for a processor that makes every picture of one size, or of tiles of one size, and for limits that
            leave no size.
    """
    if most is None and least is None:
        return
    images = processor.image_processor
    size = dict(getattr(images, "size", None) or {})
    area, smallest = size.get("longest_edge"), size.get("shortest_edge")
    # Of those that keep a picture's own size these are areas; no side is as long.
    if area is None or smallest is None or area < _AREA:
        raise ModelError(
            f"{type(images).__name__} brings every picture to a size of its own, so max_pixels would change nothing; "
            "leave it out, and scale the pictures down yourself if you like."
        )
    most = area if most is None else most
    if least is not None and not 0 < least <= most:
        raise ModelError(f"min_pixels={least} and max_pixels={most} leave no size for a picture; give fewer at least.")
    images.size = {**size, "longest_edge": most, "shortest_edge": min(smallest, most) if least is None else least}


def explain_failure(processor: Any, pictures: Sequence[Image.Image], error: Exception) -> FoveateError:
    """The error for a processor that failed on pictures: which of them it cannot take, and why."""
    for number, picture in enumerate(pictures, 1):
        try:
            processor.image_processor(images=[picture], return_tensors="pt")
        except Exception as reason:  # processors raise nearly everything
            name = name_of(picture, f"picture {number} of the prompt")
            return PictureError(
                f"{name}: the model's processor cannot take a picture of {picture.width} x {picture.height} pixels "
                f"({first_line(reason)}); crop or scale it."
            )
    return ModelError(f"the model's processor cannot make inputs of this prompt ({first_line(error)}).")


def _with_name(picture: Image.Image, made: Image.Image) -> Image.Image:
    made.filename = name_of(picture, "")  # type: ignore[attr-defined]
    return made
