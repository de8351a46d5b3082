"""LLaVA-1.5: CLIP (or SigLIP) tower, one fixed grid per image, projector, Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..tokens import AttentionKind, Grid
from .base import AttentionCall, ModelAdapter, layers_behind, patch_attention, register_model


@register_model
class LlavaAdapter(ModelAdapter):
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
            raise ModelError(
                "vision_feature_select_strategy='full' keeps the CLS token among the visual tokens, which has no place "
                "on the grid; set it to 'default'."
            )

    @property
    def vision(self) -> Any:
        return self.base.vision_tower

    @property
    def projector(self) -> nn.Module:
        return self.base.multi_modal_projector

    @property
    def has_cls(self) -> bool:
        """Whether the tower's position 0 is a CLS token."""
        return self.model.config.vision_config.model_type == "clip_vision_model"

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return {}
        patch = self.model.config.vision_config.patch_size
        return {"image": [Grid(pixels.shape[-2] // patch, pixels.shape[-1] // patch)] * pixels.shape[0]}

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixel_values": args[0] if args else kwargs["pixel_values"]}

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
