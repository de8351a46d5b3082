"""GLM-4.6V (Flash): GLM-4.1V's encoder and language model, each chosen by the configuration."""

from __future__ import annotations

from typing import ClassVar

from .glm4v import Glm4vAdapter
from .registry import register_model


@register_model
class Glm46VAdapter(Glm4vAdapter):
    """``Glm46VForConditionalGeneration``."""

    model_type = "glm46v"
    class_name = "Glm46VForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("glm4v", *Glm4vAdapter.relatives)
