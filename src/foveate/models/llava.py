"""LLaVA-1.5: CLIP (or SigLIP) tower, one fixed grid per image, projector, Llama."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..tokens import AttentionKind, Grid
from .base import AttentionCall, layers_behind, patch_attention, register_model
from .tower import TowerAdapter


@register_model
class LlavaAdapter(TowerAdapter):
    """``LlavaForConditionalGeneration`` with a CLIP or SigLIP tower.

    The encoder-attention cue is read in the layer whose output becomes the visual feature: the CLS row where the
    tower has a CLS token, else the attention that a patch receives on average (see `MOST_QUERIES`).
    """

    model_type = "llava"
    class_name = "LlavaForConditionalGeneration"

    def check(self) -> None:
        config = self.model.config
        tower = config.vision_config.model_type
        if tower not in ("clip_vision_model", "siglip_vision_model"):
            raise ModelError(f"LLaVA with a {tower!r} tower is not supported; CLIP and SigLIP towers are.")
        if config.vision_feature_select_strategy == "full" and tower == "clip_vision_model":
            self.refuse_cls()

    @property
    def has_cls(self) -> bool:
        """Whether the tower's position 0 is a CLS token."""
        return self.model.config.vision_config.model_type == "clip_vision_model"

    def grid(self, height: int, width: int) -> Grid:
        patch = self.model.config.vision_config.patch_size
        return Grid(height // patch, width // patch)

    def vision_layers(self) -> list[Any]:
        tower = getattr(self.vision, "vision_model", self.vision)
        return list(tower.encoder.layers)

    def attention_modules(self) -> dict[int, nn.Module]:
        layer = self.model.config.vision_feature_layer
        last = layer if isinstance(layer, int) else layer[-1]
        return {i: layer.self_attn for i, layer in enumerate(layers_behind(last, self.vision_layers()))}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        return list(patch_attention(calls[-1], kind, self.has_cls))

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return list(hidden)

    def patches(self, grid: Grid) -> int:
        return len(grid) + int(self.has_cls)
