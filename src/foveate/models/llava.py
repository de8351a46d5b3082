"""LLaVA-1.5: CLIP (or SigLIP) tower, one fixed grid per image, projector, Llama; and Pixtral, of the same class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, EncoderLayout, ModelAdapter, layers_behind, patch_attention
from .pixtral import PixtralAdapter
from .registry import register_model
from .tower import TowerAdapter

_SMEARED = 2  # lines of pixels, of bicubic filters
_FILL = 0.02  # one step of 8 bits, divided by the standard deviations that processors take, is 0.008 to 0.016


@register_model
class LlavaAdapter(TowerAdapter):
    """``LlavaForConditionalGeneration`` with a CLIP or SigLIP tower; with a Pixtral tower, `LlavaPixtralAdapter`.

    The encoder-attention cue is read in the layer whose output becomes the visual feature: the CLS row where the
    tower has a CLS token, else the attention that a patch receives on average (see
    `encoder_queries`).
    """

    model_type = "llava"
    class_name = "LlavaForConditionalGeneration"
    encoder_layout: ClassVar[EncoderLayout | None] = "rows"

    @classmethod
    def of(cls, model: nn.Module) -> ModelAdapter:
        """The adapter of a model, by its tower."""
        config: Any = model.config
        return LlavaPixtralAdapter(model) if config.vision_config.model_type == "pixtral" else cls(model)

    def check(self) -> None:
        config = self.model.config
        tower = config.vision_config.model_type
        if tower not in ("clip_vision_model", "siglip_vision_model"):
            raise ModelError(f"LLaVA with a {tower!r} tower is not supported; CLIP, SigLIP and Pixtral towers are.")
        if config.vision_feature_select_strategy == "full" and tower == "clip_vision_model":
            self.refuse_cls()

    @property
    def has_cls(self) -> bool:
        """Whether the tower's position 0 is a CLS token."""
        return self.model.config.vision_config.model_type == "clip_vision_model"

    @property
    def feature_layer(self) -> int | Sequence[int]:
        """Which of the tower's hidden states are the visual features; of several, they are joined."""
        return self.model.config.vision_feature_layer

    def grid(self, height: int, width: int) -> Grid:
        patch = self.model.config.vision_config.patch_size
        return Grid(height // patch, width // patch)

    def vision_layers(self) -> list[Any]:
        tower = getattr(self.vision, "vision_model", self.vision)
        return list(tower.encoder.layers)

    def feature_blocks(self) -> int:
        return len(layers_behind(self.feature_layer, self.vision_layers()))

    def attention_modules(self) -> dict[int, nn.Module]:
        layers = layers_behind(self.feature_layer, self.vision_layers())
        return {i: layer.self_attn for i, layer in enumerate(layers)}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        return list(patch_attention(calls[-1], kind, self.has_cls, self.encoder_queries))

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return list(hidden)

    def padding(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], grids: list[Grid]) -> list[Tensor]:
        """Rows or columns of patches at the edges in the processor's mean colour, which is 0 behind its normalisation.

        That is the border with which a picture is made square where the processor does so (LLaVA-1.5's own image
        processor; CLIP's crops instead). An image that is nothing else has none.
        """
        pixels: Tensor = args[0] if args else kwargs["pixel_values"]
        return [border(image, grid) for image, grid in zip(pixels, grids, strict=True)]

    def patches(self, grid: Grid) -> int:
        return len(grid) + int(self.has_cls)


class LlavaPixtralAdapter(PixtralAdapter):
    """``LlavaForConditionalGeneration`` with a Pixtral tower, as Pixtral-12B has."""

    model_type = "llava"
    class_name = "LlavaForConditionalGeneration"

    def check(self) -> None:
        if self.model.config.vision_feature_select_strategy != "full":
            raise ModelError(
                "a Pixtral tower has no CLS token, whose place vision_feature_select_strategy='default' leaves out; "
                "set it to 'full'."
            )


def border(pixels: Tensor, grid: Grid) -> Tensor:
    """(n,) bool: the tokens of an image (3, H, W) in whole rows or columns at its edges that show no picture.

    Such pixels are the mean colour, up to a rounded step of 8 bits. Resizing has smeared the picture over two lines of
    pixels beside it, which count as border. An image that is nothing else has none.
    """
    coloured = (pixels.abs() > _FILL).any(0)
    empty = torch.zeros(grid.rows, grid.columns, dtype=torch.bool, device=pixels.device)
    for axis, patches in ((1, grid.rows), (0, grid.columns)):
        lines = coloured.any(axis).nonzero()[:, 0]
        if len(lines):
            side = coloured.shape[1 - axis] // patches
            start = side * torch.arange(patches, device=pixels.device)
            outside = (start + side <= lines[0] + _SMEARED) | (start >= lines[-1] + 1 - _SMEARED)
            # Without any line of border nothing was smeared, either.
            outside &= (start < lines[0]) | (start + side > lines[-1] + 1)
            empty |= outside[:, None] if axis == 1 else outside
    return empty.flatten()
