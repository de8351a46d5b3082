"""SmolVLM and SmolVLM2: the architecture of Idefics3 with smaller parts."""

from __future__ import annotations

from .idefics3 import Idefics3Adapter
from .registry import register_model


@register_model
class SmolVLMAdapter(Idefics3Adapter):
    """``SmolVLMForConditionalGeneration``; each frame of a clip is an image of its own."""

    model_type = "smolvlm"
    class_name = "SmolVLMForConditionalGeneration"
