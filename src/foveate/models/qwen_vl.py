"""What the Qwen-VL families have in common: dynamic resolution, 2 x 2 patch merging, M-RoPE, images and video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, EncoderLayout, ModelAdapter, patch_attention, pooled_mean


class QwenVLAdapter(ModelAdapter):
    """A tower that encodes each frame on its own, in the order of its merged patches, which is raster order of tokens.

    The encoder-attention cue is the attention that a patch receives on average in `attention_module` (see
    `encoder_queries`), averaged over the patches of an LLM token; encoder features are averaged likewise.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    leaves_out_patches = True
    encoder_layout: ClassVar[EncoderLayout | None] = "packed"
    # What the family's processors subtract from pixels in [0, 1] and divide by; models do not know.
    pixel_mean: ClassVar[tuple[float, float, float]] = (0.48145466, 0.4578275, 0.40821073)
    pixel_deviation: ClassVar[tuple[float, float, float]] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def vision(self) -> Any:
        return self.base.visual

    @property
    def projector(self) -> nn.Module:
        return self.vision.merger

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return self.model.config.vision_config.spatial_merge_size

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id, "video": self.model.config.video_token_id}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        out = {}
        for modality in self.modalities:
            shapes = inputs.get(f"{modality}_grid_thw")
            if shapes is not None:
                out[modality] = [Grid(h // self.merge, w // self.merge, t) for t, h, w in shapes.tolist()]
        return out

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{modality}_grid_thw": kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]}

    def pixels(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        rows = (args[0] if args else kwargs["hidden_states"]).float()
        mean, deviation = (rows.new_tensor(values)[:, None] for values in (self.pixel_mean, self.pixel_deviation))
        rows = (rows.unflatten(1, (3, -1)) * deviation + mean).view(-1, self.merge**2 * rows.shape[1])
        return list(rows.split([len(grid) for grid in self.encoder_grids(args, kwargs)]))

    def encoder_grids(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Grid]:
        return self.grids(self.grid_inputs("image", args, kwargs))["image"]

    def vision_layers(self) -> list[Any]:
        return list(self.vision.blocks)

    def attention_modules(self) -> dict[int, nn.Module]:
        return {i: block.attn for i, block in enumerate(self.vision.blocks)}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = torch.cat([patch_attention(call, kind, False, self.encoder_queries)[0] for call in calls])
        return self._of_images(received, grids)

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return self._of_images(hidden, grids)

    def _of_images(self, patches: Tensor, grids: list[Grid]) -> list[Tensor]:
        """Means over the patches of each LLM token, in raster order, one tensor per image."""
        parts = pooled_mean(patches, self.merge**2).split([len(grid) for grid in grids])
        return [self._raster(part, grid) for part, grid in zip(parts, grids, strict=True)]

    def _raster(self, tokens: Tensor, grid: Grid) -> Tensor:
        """From the encoder's order of LLM tokens to raster order."""
        order = self.encoder_order(grid).to(tokens.device, non_blocking=True)
        return torch.empty_like(tokens).index_copy_(0, order, tokens)

    def vision_attention_pairs(self, grid: Grid, kept: Tensor | None = None) -> list[int]:
        return [self._pairs(grid.coordinates()[:, 0], kept)] * len(self.vision_layers())

    def _pairs(self, part: Tensor, kept: Tensor | None) -> int:
        """Query-key pairs of a layer in which the tokens of each `part` (n,) attend to each other."""
        sizes = (part if kept is None else part[kept.cpu()]).bincount() * self.merge**2
        return int((sizes**2).sum())
