"""PaliGemma and PaliGemma 2: SigLIP on pictures of one size before Gemma, whose whole prompt sees itself."""

from __future__ import annotations

from .registry import register_model
from .siglip import SiglipAdapter


@register_model
class PaliGemmaAdapter(SiglipAdapter):
    """``PaliGemmaForConditionalGeneration``.

    All tokens of the prompt attend to each other in both directions, images and text alike, and what is generated
    attends to what came before; what is left of a pruned prompt does so, too.
    """

    model_type = "paligemma"
    class_name = "PaliGemmaForConditionalGeneration"
