"""Mistral Small 3.1 and later: a Pixtral tower whose patches are merged 2 x 2, projector, Mistral."""

from __future__ import annotations

from .pixtral import PixtralAdapter
from .registry import register_model


@register_model
class Mistral3Adapter(PixtralAdapter):
    """``Mistral3ForConditionalGeneration``; its projector merges patches before it projects them."""

    model_type = "mistral3"
    class_name = "Mistral3ForConditionalGeneration"

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return self.model.config.spatial_merge_size
