"""What the pictures show is what the model was given: against the pixels that processors really hand over."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import transformers as tf
from PIL import Image

from foveate.data.limits import fit_picture
from foveate.visualize import visible_part

SQUARE = {"height": 56, "width": 56}


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green to the bottom, so that a shift or a stretch by a few pixels is visible."""
    red, green = np.meshgrid(np.linspace(40, 220, width), np.linspace(40, 220, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 128)], -1).astype(np.uint8))


def given(processor: tf.CLIPImageProcessorPil, image: Image.Image) -> np.ndarray:
    """(H, W, 3) what the model gets, back in 0..255."""
    pixels = np.asarray(processor(images=image, return_tensors="pt")["pixel_values"][0]).transpose(1, 2, 0)
    return (pixels * processor.image_std + processor.image_mean) * 255


@pytest.mark.parametrize("size", [(90, 90), (200, 80), (75, 161), (56, 56), (40, 30)])
@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 56}, "crop_size": SQUARE},
        {"size": {"shortest_edge": 64}, "crop_size": SQUARE},
        {"size": {"height": 64, "width": 72}, "crop_size": SQUARE},
        {"size": SQUARE, "crop_size": SQUARE, "do_center_crop": False},
        {"size": {"shortest_edge": 56}, "crop_size": SQUARE, "do_resize": False},
    ],
    ids=["resize-crop", "crop-inside", "stretch-crop", "stretch", "crop-or-pad"],
)
def test_the_picture_is_what_clip_processors_hand_over(size: tuple[int, int], options: dict[str, object]) -> None:
    processor = tf.CLIPImageProcessorPil(**options)
    image = gradient(*size)
    wanted = given(processor, image)
    shown = np.asarray(visible_part(image, processor).resize((56, 56), Image.Resampling.BICUBIC), dtype=float)
    inside = wanted.min(-1) > 20  # padding is black, and resampling blurs its edge
    off = np.abs(shown - wanted)[inside]
    assert np.median(off) < 3
    assert np.quantile(off, 0.95) < 8  # one resized pixel of 56 moves a channel by about 3


def test_padding_to_a_square_is_seen() -> None:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    processor = LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE, do_pad=True, image_mean=[0.0] * 3)
    image = gradient(120, 60)
    shown = visible_part(image, processor)
    assert shown.size == (120, 120)
    assert np.array_equal(np.asarray(shown)[30:90], np.asarray(image))
    wanted = given(processor, image)
    assert np.abs(np.asarray(shown.resize((56, 56)), dtype=float) - wanted)[16:40].max() < 8


def test_processors_that_do_not_crop_show_everything() -> None:
    image = gradient(100, 61)
    assert visible_part(image, tf.Qwen2VLImageProcessorPil()).size == image.size


@pytest.mark.parametrize("size", [(40, 30), (56, 56), (120, 60), (30, 300)])
def test_padding_to_one_size_is_seen(size: tuple[int, int]) -> None:
    processor = tf.CLIPImageProcessorPil(
        do_resize=False, do_center_crop=False, do_pad=True, pad_size=SQUARE, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    image = gradient(*size)
    wanted = given(processor, fit_picture(SimpleNamespace(image_processor=processor), image))
    shown = np.asarray(visible_part(image, processor).resize((56, 56), Image.Resampling.BICUBIC), dtype=float)
    assert np.median(np.abs(shown - wanted)) < 3


def test_very_long_pictures_are_seen_without_filling_the_memory() -> None:
    processor = tf.CLIPImageProcessorPil(do_resize=False, do_center_crop=False, do_pad=True, pad_size=SQUARE)
    assert max(visible_part(Image.new("RGB", (60000, 2)), processor).size) <= 4096
