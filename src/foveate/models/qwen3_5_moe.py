"""Qwen3.5-MoE: Qwen3.5 with experts, one of them shared, in all decoder layers of its language model."""

from __future__ import annotations

from typing import ClassVar

from ..tokens import Cue, Source
from .qwen3_5 import Qwen35Adapter
from .registry import register_model


@register_model
class Qwen35MoeAdapter(Qwen35Adapter):
    """``Qwen3_5MoeForConditionalGeneration``; the vision encoder is Qwen3.5's."""

    model_type = "qwen3_5_moe"
    class_name = "Qwen3_5MoeForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("qwen3_5", "qwen3_vl", "qwen2_5_vl", "qwen2_vl")
    cues = Qwen35Adapter.cues | Cue.of(Source.ROUTER)
