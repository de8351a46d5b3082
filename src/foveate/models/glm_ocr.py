"""GLM-OCR: GLM-4.1V in small, with norms on the queries and keys of its encoder."""

from __future__ import annotations

from typing import ClassVar

from .glm4v import Glm4vAdapter
from .registry import register_model


@register_model
class GlmOcrAdapter(Glm4vAdapter):
    """``GlmOcrForConditionalGeneration``."""

    model_type = "glm_ocr"
    class_name = "GlmOcrForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("glm4v", *Glm4vAdapter.relatives)
