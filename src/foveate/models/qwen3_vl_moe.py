"""Qwen3-VL-MoE: Qwen3-VL with experts in the decoder layers of its language model."""

from __future__ import annotations

from typing import ClassVar

from ..tokens import Cue, Source
from .qwen3_vl import Qwen3VLAdapter
from .registry import register_model


@register_model
class Qwen3VLMoeAdapter(Qwen3VLAdapter):
    """``Qwen3VLMoeForConditionalGeneration``; the vision encoder is Qwen3-VL's."""

    model_type = "qwen3_vl_moe"
    class_name = "Qwen3VLMoeForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
    cues = Qwen3VLAdapter.cues | Cue.of(Source.ROUTER)
