"""VipLlava: LLaVA-1.5 with the features of several layers of its tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..errors import ModelError
from .llava import LlavaAdapter
from .registry import register_model


@register_model
class VipLlavaAdapter(LlavaAdapter):
    """``VipLlavaForConditionalGeneration``.

    The encoder-attention cue is read in the deepest of the layers whose outputs are joined to the visual feature.
    """

    model_type = "vipllava"
    class_name = "VipLlavaForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("llava",)

    def check(self) -> None:
        tower = self.model.config.vision_config.model_type
        if tower != "clip_vision_model":
            raise ModelError(
                f"VipLlava with a {tower!r} tower is not supported: it leaves out the first position, which must be a "
                "CLS token; CLIP towers have one."
            )

    @property
    def feature_layer(self) -> int | Sequence[int]:
        layers: int | Sequence[int] = self.model.config.vision_feature_layers
        return layers
