"""ERNIE 4.5 VL: Qwen2-VL's encoder, a resampler that joins pairs of frames, visual tokens with experts of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, pooled_mean
from .moe import MoeBlock, weights_per_expert
from .qwen_vl import QwenVLAdapter
from .registry import register_model


@register_model
class Ernie45VLMoeAdapter(QwenVLAdapter):
    """``Ernie4_5_VLMoeForConditionalGeneration``; the encoder-attention cue is read in the last block.

    An LLM token of a clip stands for two frames, over which its cues are averaged. Visual tokens and text go through
    different experts: methods that read routers or cut experts are refused, and costs count all tokens as if they went
    through those of visual tokens, a clip of one pair of frames as an image.
    """

    model_type = "ernie4_5_vl_moe"
    class_name = "Ernie4_5_VLMoeForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    token_arguments = ("moe_mm_token_type_ids",)
    leaves_out_patches = False
    encoder_layout = None

    @property
    def vision(self) -> Any:
        return self.base.vision_tower

    @property
    def projector(self) -> nn.Module:
        return self.base.resampler_model

    @property
    def pair(self) -> int:
        """Frames of an LLM token of a clip."""
        return self.model.config.vision_config.temporal_merge_size

    def moe(self) -> list[MoeBlock | None]:
        return [None] * len(self.text.layers)

    def routed_weights(self) -> list[int]:
        blocks = [getattr(layer.mlp, "vision_moe", None) for layer in self.text.layers]
        return [0 if block is None else _weights_per_token(block) for block in blocks]

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        grids = super().grids(inputs)
        if "video" in grids:
            grids["video"] = [Grid(grid.rows, grid.columns, grid.frames // self.pair) for grid in grids["video"]]
        return grids

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        frames = [Grid(1, sum(map(len, grids)) * self._frames_of(sum(call.key.shape[2] for call in calls), grids))]
        return self._of_pairs(super().encoder_attention(calls, frames, kind)[0], grids)

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return self._of_pairs(pooled_mean(hidden, self.merge**2), grids)

    def _frames_of(self, patches: int, grids: list[Grid]) -> int:
        """How many frames each LLM token stands for: one in images, two in clips, which are encoded apart."""
        return patches // (self.merge**2 * sum(map(len, grids)))

    def _of_pairs(self, tokens: Tensor, grids: list[Grid]) -> list[Tensor]:
        """Means over the frames of each LLM token, of what the encoder tells of each frame, one tensor per image."""
        frames = self._frames_of(len(tokens) * self.merge**2, grids)
        parts = tokens.split([len(grid) * frames for grid in grids])
        pairs = zip(parts, grids, strict=True)
        return [part.view(grid.frames, frames, -1, *part.shape[1:]).mean(1).flatten(0, 1) for part, grid in pairs]

    def patches(self, grid: Grid) -> int:
        return super().patches(grid) * (self.pair if grid.frames > 1 else 1)

    def vision_attention_pairs(self, grid: Grid, kept: Tensor | None = None) -> list[int]:
        frames = self.pair if grid.frames > 1 else 1
        return [frames * pairs for pairs in super().vision_attention_pairs(grid, kept)]


def _weights_per_token(block: Any) -> int:
    return block.gate.weight.numel() + block.top_k * weights_per_expert(block.experts)
