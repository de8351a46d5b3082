"""transformers' own processors for the tiny checkpoints of families whose positions are 1-D, built in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as tf

from tiny_models import Zoo

_SIDE = {"height": 56, "width": 56}


def _llava_next(zoo: Zoo, template: str) -> Any:
    return _with_template(zoo.processor.own, template)  # type: ignore[attr-defined]


def _llava_onevision(zoo: Zoo, template: str) -> Any:
    # What vLLM takes for granted, and tiles enough that the model makes pictures of them smaller.
    zoo.model.config.vision_aspect_ratio = "anyres_max_9"
    zoo.model.config.image_grid_pinpoints = pinpoints = [*zoo.model.config.image_grid_pinpoints, [224, 224]]
    images = tf.LlavaOnevisionImageProcessorPil(size=_SIDE, image_grid_pinpoints=pinpoints)
    clips = tf.LlavaOnevisionVideoProcessor(size=_SIDE)
    strategy = zoo.model.config.vision_feature_select_strategy
    return tf.LlavaOnevisionProcessor(images, zoo.tokenizer, clips, 16, strategy, chat_template=template)


def _llava_next_video(zoo: Zoo, template: str) -> Any:
    clips = tf.LlavaNextVideoVideoProcessor(size=_SIDE, crop_size=_SIDE, do_sample_frames=False)
    return tf.LlavaNextVideoProcessor(
        clips,
        zoo.processor.image_processor,
        zoo.tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _pixtral(zoo: Zoo, template: str) -> Any:
    merge = getattr(zoo.model.config, "spatial_merge_size", 1)
    images = tf.PixtralImageProcessor(patch_size=14 * merge, size={"longest_edge": 448})
    return tf.PixtralProcessor(images, zoo.tokenizer, 14, merge, chat_template=template)


def _idefics3(zoo: Zoo, template: str) -> Any:
    images = tf.Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    return tf.Idefics3Processor(images, zoo.tokenizer, 16, chat_template=template)


def _smolvlm(zoo: Zoo, template: str) -> Any:
    from transformers.models.smolvlm import processing_smolvlm

    # The package is asked for even by those who show no clips, in whose prompts it spells a number.
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    images = tf.SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    return tf.SmolVLMProcessor(images, zoo.tokenizer, tf.SmolVLMVideoProcessor(), 16, chat_template=template)


def _cohere2_vision(zoo: Zoo, template: str) -> Any:
    text = zoo.model.config.text_config
    text.sliding_window = 512  # vLLM's window is one token wider than transformers'
    text.logit_scale = 1.0  # transformers leaves it out in this class
    size = {"height": 112, "width": 112}
    images = tf.Cohere2VisionImageProcessor(size=size, patch_size=4, max_patches=4)  # 4: LLM tokens along a tile
    return tf.Cohere2VisionProcessor(images, zoo.tokenizer, chat_template=template)


def _lfm2_vl(zoo: Zoo, template: str) -> Any:
    text = zoo.model.config.text_config
    # vLLM reads what published checkpoints have, and transformers' class has not.
    text.conv_dim = text.block_dim = text.hidden_size
    text.block_ff_dim = text.intermediate_size
    sizes = {"min_image_tokens": 4, "max_image_tokens": 16, "tile_size": 112, "max_tiles": 4}
    images = tf.Lfm2VlImageProcessor(encoder_patch_size=14, max_num_patches=64, **sizes)
    return tf.Lfm2VlProcessor(images, zoo.tokenizer, chat_template=template)


def _llama4(zoo: Zoo, template: str) -> Any:
    text = zoo.model.config.text_config
    text.attention_chunk_size = 512  # a multiple of vLLM's blocks
    text.interleave_moe_layer_step = 2  # by which vLLM tells where experts are
    images = tf.Llama4ImageProcessor(size={"height": 112, "width": 112}, max_patches=4)
    return tf.Llama4Processor(images, zoo.tokenizer, patch_size=14, chat_template=template)


def _with_template(processor: Any, template: str) -> Any:
    processor.chat_template = template
    return processor


MAKERS: dict[str, Callable[[Zoo, str], Any]] = {
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "llava_next_video": _llava_next_video,
    "mistral3": _pixtral,
    "pixtral": _pixtral,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "cohere2_vision": _cohere2_vision,
    "lfm2_vl": _lfm2_vl,
    "llama4": _llama4,
}
