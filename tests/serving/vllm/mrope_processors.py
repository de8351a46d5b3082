"""transformers' own processors for the tiny checkpoints of families with M-RoPE, built in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as tf

from tiny_models import Zoo


def _qwen3(zoo: Zoo, template: str) -> Any:
    images = zoo.processor.image_processor
    # vLLM normalises on the device, clips with the numbers of images.
    video = tf.Qwen3VLVideoProcessor(image_mean=images.image_mean, image_std=images.image_std)
    return tf.Qwen3VLProcessor(images, zoo.tokenizer, video, chat_template=template)


def _glm4v(zoo: Zoo, template: str) -> Any:
    size = dict(zoo.processor.image_processor.size)
    images, video = tf.Glm4vImageProcessorPil(size=size), tf.Glm4vVideoProcessor(size=size)
    return tf.Glm4vProcessor(images, zoo.tokenizer, video, chat_template=template)


def _glm46v(zoo: Zoo, template: str) -> Any:
    size = dict(zoo.processor.image_processor.size)
    images, video = tf.Glm46VImageProcessorPil(size=size), tf.Glm46VVideoProcessor(size=size)
    return tf.Glm46VProcessor(images, zoo.tokenizer, video, chat_template=template)


def _paddleocr_vl(zoo: Zoo, template: str) -> Any:
    return tf.PaddleOCRVLProcessor(zoo.processor.image_processor, zoo.tokenizer, chat_template=template)


def _qwen2_5_omni(zoo: Zoo, template: str) -> Any:
    heard = tf.WhisperFeatureExtractor(feature_size=zoo.model.config.audio_config.num_mel_bins, chunk_length=4)
    images, video = zoo.processor.image_processor, tf.Qwen2VLVideoProcessor()
    return tf.Qwen2_5OmniProcessor(images, video, heard, zoo.tokenizer, chat_template=template)


MAKERS: dict[str, Callable[[Zoo, str], Any]] = {
    "qwen3_vl_moe": _qwen3,
    "qwen3_5": _qwen3,
    "qwen3_5_moe": _qwen3,
    "glm4v": _glm4v,
    "glm4v_moe": _glm46v,  # GLM-4.6V has the classes of GLM-4.5V
    "glm_ocr": _glm4v,
    "paddleocr_vl": _paddleocr_vl,
    "qwen2_5_omni": _qwen2_5_omni,
}
