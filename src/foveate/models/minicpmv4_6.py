"""MiniCPM-V 4.6: a SigLIP-like encoder that joins patches on its way, before Qwen3.5's language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, ModelAdapter, RecurrentState, patch_attention
from .qwen3_5 import state_of
from .registry import register_model


@register_model
class MiniCPMV46Adapter(ModelAdapter):
    """``MiniCPMV4_6ForConditionalGeneration``.

    Each slice of a picture, and each frame of a clip, is an image of its own, with a budget of its own: a forward's
    inputs do not say what belongs together. With ``scope="prompt"`` all of them share one budget. The encoder-attention
    cue is the attention that a patch receives on average in the last layer (see `encoder_queries`); it and the encoder
    features are averaged over the patches of an LLM token.
    """

    model_type = "minicpmv4_6"
    class_name = "MiniCPMV4_6ForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("qwen3_5", "qwen3_vl")
    modalities = ("image", "video")
    hybrid = True

    @property
    def vision(self) -> Any:
        return self.base.vision_tower

    @property
    def projector(self) -> nn.Module:
        return self.base.merger

    def recurrent_state(self, layer: int) -> RecurrentState | None:
        return state_of(self.text.layers[layer])

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id, "video": self.model.config.video_token_id}

    @property
    def merge(self) -> int:
        """What the merger behind the encoder joins along each side of an LLM token."""
        return self.model.config.merge_kernel_size[0] ** self.model.config.merger_times

    def _side(self, mode: str | None) -> int:
        """Patches along each side of an LLM token; half of the layers may see them joined already."""
        return self.merge * (1 if (mode or self.model.config.downsample_mode) == "4x" else 2)

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        side, found = self._side(inputs.get("downsample_mode")), {}
        for modality, name in (("image", "target_sizes"), ("video", "target_sizes_videos")):
            if (sizes := inputs.get(name)) is not None:
                found[modality] = [Grid(rows // side, columns // side) for rows, columns in sizes.tolist()]
        return found

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        name = "target_sizes" if modality == "image" else "target_sizes_videos"
        return {name: kwargs["target_sizes"], "downsample_mode": "16x" if kwargs["use_vit_merger"] else "4x"}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = torch.cat([patch_attention(call, kind, False, self.encoder_queries)[0] for call in calls])
        return _of_images(received, grids)

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return _of_images(hidden[0], grids)

    def patches(self, grid: Grid) -> int:
        return len(grid) * self._side(None) ** 2

    def vision_attention_pairs(self, grid: Grid, kept: Tensor | None = None) -> list[int]:
        config, layers, patches = self.model.config, len(self.vision_layers()), self.patches(grid)
        joined = 0 if config.downsample_mode == "4x" else layers - config.vision_config.insert_layer_id - 1
        return [patches**2] * (layers - joined) + [(patches // 4) ** 2] * joined


def _of_images(patches: Tensor, grids: list[Grid]) -> list[Tensor]:
    """Means over the patches (P, ...) of each LLM token, in raster order, one tensor per image.

    How many there are of a token depends on the layer.
    """
    share = len(patches) // sum(map(len, grids))
    side = round(share**0.5)
    parts = zip(patches.split([len(grid) * share for grid in grids]), grids, strict=True)
    return [
        part.view(grid.rows, side, grid.columns, side, *part.shape[1:]).mean((1, 3)).flatten(0, 1)
        for part, grid in parts
    ]
