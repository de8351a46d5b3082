"""Qwen2-VL: full attention in each frame, M-RoPE, images and video."""

from __future__ import annotations

from typing import ClassVar

from .qwen_vl import QwenVLAdapter
from .registry import register_model


@register_model
class Qwen2VLAdapter(QwenVLAdapter):
    """``Qwen2VLForConditionalGeneration``; the encoder-attention cue is read in the last block."""

    model_type = "qwen2_vl"
    class_name = "Qwen2VLForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    @property
    def vision_width(self) -> int:
        return self.model.config.vision_config.embed_dim  # `hidden_size` is the width behind the merger here
