"""Cohere 2 Vision (Command A Vision): as Aya Vision, with the features of the tower's last layer."""

from __future__ import annotations

from collections.abc import Sequence

from .aya_vision import AyaVisionAdapter
from .registry import register_model


@register_model
class Cohere2VisionAdapter(AyaVisionAdapter):
    """``Cohere2VisionForConditionalGeneration``."""

    model_type = "cohere2_vision"
    class_name = "Cohere2VisionForConditionalGeneration"

    @property
    def feature_layer(self) -> int | Sequence[int]:
        return -1
