"""Molmo 2: each picture in small, then in crops that overlap; attention pools patches; images see each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, ModelAdapter, patch_attention
from .registry import register_model


@dataclass(frozen=True)
class PooledGrid(Grid):
    """The layout of what the processor chose patches for.

    Args:
        rows: of its LLM tokens.
        columns: of its LLM tokens.
        frames: of a clip.
        pooling: (n, k) long, the patches of each token, counted through all crops of the encoder's call; -1 for none.
    """

    pooling: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long), compare=False, repr=False)


@register_model
class Molmo2Adapter(ModelAdapter):
    """``Molmo2ForConditionalGeneration``.

    A picture is two grids, each with a budget of its own: the whole of it in small, then in crops, whose overlaps the
    model leaves out. With ``scope="prompt"`` they share one budget. A clip is one image of several frames. The tokens
    that end a row, an image or a frame, and the times before frames, are text, which is never pruned.

    All images of a prompt attend to each other in both directions, with the tokens around their rows, where the
    processor's ``mm_token_type_ids`` tell which they are; of pruned images, those that are kept do.

    The encoder-attention cue is the attention that a patch receives on average in the deepest layer whose output
    becomes a visual feature (see `encoder_queries`); it and the encoder features are averaged over the patches that are
    pooled into an LLM token.
    """

    model_type = "molmo2"
    class_name = "Molmo2ForConditionalGeneration"
    modalities = ("image", "video")

    @property
    def vision(self) -> Any:
        return self.base.vision_tower

    @property
    def projector(self) -> Any:
        return self.base.multi_modal_projector

    def token_ids(self) -> dict[str, int]:
        return dict.fromkeys(self.modalities, self.model.config.image_token_id)

    def find_placeholders(self, modality: str, input_ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """As usual; the model takes pictures or clips, never both, whose placeholders are the same."""
        places = super().find_placeholders(modality, input_ids, inputs)
        clips = inputs.get("video_grids") is not None and inputs.get("image_grids") is None
        return places if clips == (modality == "video") else torch.zeros_like(places)

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        pictures, clips = inputs.get("image_grids"), inputs.get("video_grids")
        out: dict[str, list[Grid]] = {}
        if pictures is not None:
            sizes = [(1, *size) for row in pictures.tolist() for size in (row[:2], row[2:])]
            out["image"] = _pooled(sizes, inputs.get("image_token_pooling"), "image")
        if clips is not None:
            out["video"] = _pooled(clips.tolist(), inputs.get("video_token_pooling"), "video")
        return out

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {}  # the encoder sees crops and does not know which tokens they become

    @property
    def vision_width(self) -> int:
        config = self.model.config.vision_config
        return int(config.num_attention_heads * config.head_dim)

    def vision_layers(self) -> list[Any]:
        return list(self.vision.layers)

    def attention_modules(self) -> dict[int, nn.Module]:
        layers = self.vision_layers()
        deepest = max(layer % len(layers) for layer in self.model.config.adapter_config.vision_feature_layer)
        return {index: layer.self_attn for index, layer in enumerate(layers[: deepest + 1])}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = patch_attention(calls[-1], kind, False, self.encoder_queries)
        return [values[:, 0] for values in _means(received.flatten()[:, None], grids)]

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return _means(hidden.flatten(0, -2), grids)

    def token_modules(self) -> list[nn.Module]:
        pool = self.projector.image_pooling_2d
        return [pool.q_proj, pool.o_proj, self.projector.image_projector]

    def grid_products(self, grid: Any) -> int:
        """Keys and values of all patches of each token, and its attention to them."""
        config = self.model.config.adapter_config
        features = config.hidden_size * len(config.vision_feature_layer)
        products = features * config.num_key_value_heads + config.num_attention_heads  # of keys, and with them
        return int(2 * grid.pooling.numel() * products * config.head_dim)

    def patches(self, grid: Any) -> int:
        return self._crops(grid) * self._patches_of_crop

    def vision_attention_pairs(self, grid: Any, kept: Tensor | None = None) -> list[int]:
        return [self._crops(grid) * self._patches_of_crop**2] * len(self.vision_layers())

    @property
    def _patches_of_crop(self) -> int:
        return int(self.model.config.vision_config.num_position_embeddings)

    def _crops(self, grid: Any) -> int:
        """How many crops, or frames, become this grid."""
        return len((grid.pooling[grid.pooling >= 0] // self._patches_of_crop).unique())


def _pooled(sizes: list[Any], pooling: Tensor | None, modality: str) -> list[Grid]:
    """Grids of so many frames, rows and columns each, with the rows of `pooling` (all tokens, k) that are theirs."""
    if pooling is None or len(pooling) != sum(frames * rows * columns for frames, rows, columns in sizes):
        raise ModelError(
            f"{modality}_grids and {modality}_token_pooling must tell of the same tokens; pass what the processor "
            "returned, unchanged, also beside images that were encoded before."
        )
    parts = pooling.split([frames * rows * columns for frames, rows, columns in sizes])
    return [
        PooledGrid(rows, columns, frames, pooling=part)
        for (frames, rows, columns), part in zip(sizes, parts, strict=True)
    ]


def _means(patches: Tensor, grids: list[Any]) -> list[Tensor]:
    """(n, c) per grid: means of `patches` (all, c) over those of each token."""
    out = []
    for grid in grids:
        pooling = grid.pooling.to(patches.device)
        there = (pooling >= 0)[..., None]
        chosen = patches[pooling.clamp_min(0)].masked_fill(~there, 0)
        out.append(chosen.sum(1) / there.sum(1))
    return out
