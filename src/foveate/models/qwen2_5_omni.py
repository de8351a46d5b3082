"""Qwen2.5-Omni's thinker: Qwen2.5-VL that hears, too; what it hears is text to foveate."""

from __future__ import annotations

from typing import Any, ClassVar

from .qwen2_5_vl import Qwen25VLAdapter
from .registry import register_model


@register_model
class Qwen25OmniThinkerAdapter(Qwen25VLAdapter):
    """``Qwen2_5OmniThinkerForConditionalGeneration``, which is ``thinker`` in the whole model.

    Audio tokens are never pruned, those between the frames of a clip neither (``use_audio_in_video``).
    """

    model_type = "qwen2_5_omni_thinker"
    class_name = "Qwen2_5OmniThinkerForConditionalGeneration"
    oldest = "5.17"
    relatives: ClassVar[tuple[str, ...]] = ("qwen2_5_vl", "qwen2_vl")

    @property
    def base(self) -> Any:
        inner = self.model.model
        return inner if hasattr(inner, "visual") else self.model  # which merges by itself before transformers 5.24

    @property
    def text(self) -> Any:
        return getattr(self.model.model, "language_model", self.model.model)
