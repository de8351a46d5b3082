"""Gemma 3: SigLIP on pictures of one size, squares of patches averaged, tokens of an image that see each other."""

from __future__ import annotations

from .registry import register_model
from .siglip import SiglipAdapter


@register_model
class Gemma3Adapter(SiglipAdapter):
    """``Gemma3ForConditionalGeneration``.

    The tokens of an image attend to each other in both directions, where the processor's ``token_type_ids`` tell which
    they are; of a pruned image, those that are kept do. Where the processor cuts crops out of a picture (pan and scan),
    each is an image of its own, with a budget of its own; with ``scope="prompt"`` all of them share one.
    """

    model_type = "gemma3"
    class_name = "Gemma3ForConditionalGeneration"
    oldest = "5.17"

    @property
    def merge(self) -> int:
        side = self.model.config.vision_config.image_size // self.model.config.vision_config.patch_size
        return side // int(self.model.config.mm_tokens_per_image**0.5)
