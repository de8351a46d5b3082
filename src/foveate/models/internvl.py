"""InternVL: InternViT on tiles of one size, 2 x 2 pixel shuffle, projector, 1-D positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..tokens import AttentionKind, Grid
from .base import AttentionCall, ModelAdapter, layers_behind, patch_attention, register_model


@register_model
class InternVLAdapter(ModelAdapter):
    """``InternVLForConditionalGeneration``.

    Each tile is an image of its own, with a budget of its own: a forward's inputs do not say which tiles were cut from
    one picture (or which are frames of one clip). With ``scope="prompt"`` all of them share one budget.

    The encoder-attention cue is the CLS row in the layer whose output becomes the visual feature; it and the encoder
    features are averaged over the patches that pixel shuffle puts into an LLM token.
    """

    model_type = "internvl"
    class_name = "InternVLForConditionalGeneration"

    def check(self) -> None:
        if self.model.config.vision_feature_select_strategy != "default":
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
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return round(1 / self.model.config.downsample_ratio)

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return {}
        sides = zip(pixels.shape[-2:], self.model.config.vision_config.patch_size, strict=True)
        rows, columns = (size // patch // self.merge for size, patch in sides)
        return {"image": [Grid(rows, columns)] * pixels.shape[0]}

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixel_values": args[0] if args else kwargs["pixel_values"]}

    def vision_layers(self) -> list[Any]:
        return list(self.vision.encoder.layer)

    def attention_modules(self) -> dict[int, nn.Module]:
        layers = layers_behind(self.model.config.vision_feature_layer, self.vision_layers())
        return {i: layer.attention for i, layer in enumerate(layers)}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = patch_attention(calls[-1], kind, cls=True)
        rows, columns, side = grids[0].rows, grids[0].columns, self.merge
        return list(received.view(-1, rows, side, columns, side).mean((2, 4)).flatten(1))

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return list(hidden.unflatten(-1, (self.merge**2, -1)).mean(-2))

    def patches(self, grid: Grid) -> int:
        return len(grid) * self.merge**2 + 1  # and the CLS token
