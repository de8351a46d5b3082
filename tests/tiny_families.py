"""Tiny random models of the families that `tests/models/test_families.py` runs, made like those of `tiny_models`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from PIL import Image
from torch import Tensor

import tiny_models
from tiny_models import Processor, Zoo

# LLaVA-NeXT and its kin, whose pictures are cut into tiles.
_PINPOINTS = [[56, 112], [112, 56], [112, 112]]


@dataclass(frozen=True)
class TiledProcessor(Processor):
    """Counts placeholders by the features that the model makes: its own processor needs torchvision for clips."""

    model: Any = None

    def _grid_counts(self, media: dict[str, Tensor]) -> list[int]:
        media["batch_num_images"] = torch.ones(len(media["image_sizes"]), dtype=torch.long)
        with torch.no_grad():
            return [len(image) for image in self.model.get_image_features(**media, return_dict=True).pooler_output]


@dataclass(frozen=True)
class OwnProcessor(Processor):
    """The family's processor itself, which knows how many placeholders each picture takes."""

    own: Any = None

    def __call__(self, images: Sequence[Sequence[Image.Image]], texts: Sequence[str]) -> dict[str, Tensor]:
        encoded = self.own(
            images=[image for prompt in images for image in prompt],
            text=list(texts),
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        )
        return dict(encoded)


def _siglip(size: int) -> dict[str, Any]:
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {
        "model_type": "siglip_vision_model",
        "image_size": size,
        "patch_size": 14,
        "vision_use_head": False,
        **widths,
    }


def _clip(size: int) -> dict[str, Any]:
    return {**_siglip(size), "model_type": "clip_vision_model", "projection_dim": 32}


@functools.cache
def llava_next(head_dim: int = 16) -> Zoo:
    """LLaVA-NeXT in small: CLIP tower of 56 px with patch 14, up to 2 x 2 tiles; Llama of 4 layers."""
    tokenizer = tiny_models._tokenizer(image_token="<image>")
    config = tf.LlavaNextConfig(
        vision_config=_clip(56),
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **tiny_models._llm(head_dim)},
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=_PINPOINTS,
    )
    size = {"height": 56, "width": 56}
    images = tf.LlavaNextImageProcessorPil(size=size, crop_size=size, image_grid_pinpoints=_PINPOINTS)
    own = tf.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor = OwnProcessor(tokenizer, images, "<image>", own=own)
    model = tiny_models._scaled(tf.LlavaNextForConditionalGeneration(config))
    return Zoo("llava_next", model, processor, "<image>", (tokenizer.image_token_id,))


@functools.cache
def llava_onevision(head_dim: int = 16) -> Zoo:
    """LLaVA-OneVision in small: SigLIP tower of 56 px with patch 14, tiles that are made smaller; Qwen2 of 4 layers."""
    tokenizer = tiny_models._tokenizer(image_token="<image>", video_token="<video>")
    config = tf.LlavaOnevisionConfig(
        vision_config=_siglip(56),
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **tiny_models._llm(head_dim)},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=_PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    size = {"height": 56, "width": 56}
    images = tf.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=_PINPOINTS)
    model = tiny_models._scaled(tf.LlavaOnevisionForConditionalGeneration(config))
    processor = TiledProcessor(tokenizer, images, "<image>", model=model)
    visual = (tokenizer.image_token_id, tokenizer.video_token_id)
    return Zoo("llava_onevision", model, processor, "<image>", visual)


# One maker a family, such as ``def llava_next() -> Zoo``, each with a cache around it.
MAKERS: tuple[Callable[[], Zoo], ...] = (tiny_models.qwen3_5, tiny_models.qwen3_5_moe, llava_next, llava_onevision)
