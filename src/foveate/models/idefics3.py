"""Idefics3: SigLIP on tiles of one size, pixel shuffle, projector, Llama, with text between the tiles."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, ModelAdapter, patch_attention
from .registry import register_model
from .tower import block_means, patches_of_tokens


@register_model
class Idefics3Adapter(ModelAdapter):
    """``Idefics3ForConditionalGeneration``.

    Each tile, and the whole picture in small behind them, is an image of its own, with a budget of its own, as in
    InternVL. The tokens that tell its row and column are text, which is never pruned.

    The encoder-attention cue is the attention that a patch receives on average in the last layer (see
    `encoder_queries`); it and the encoder features are averaged over the patches that pixel shuffle puts into an LLM
    token.
    """

    model_type = "idefics3"
    class_name = "Idefics3ForConditionalGeneration"
    encoder_layout = "rows"

    @property
    def text(self) -> Any:
        return self.base.text_model

    @property
    def vision(self) -> Any:
        return self.base.vision_model

    @property
    def projector(self) -> nn.Module:
        return self.base.connector

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return self.model.config.scale_factor

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return {}
        count = len(pixels)
        if pixels.ndim == 5:  # (prompts, most images of a prompt, ...), where an image of zeros is one too many
            count = max(int((pixels != 0).flatten(2).any(-1).sum()), 1)
        side = self.model.config.vision_config.patch_size * self.merge
        return {"image": [Grid(pixels.shape[-2] // side, pixels.shape[-1] // side)] * count}

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixel_values": args[0] if args else kwargs["pixel_values"]}

    def encoder_grids(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Grid]:
        return self.grids(self.grid_inputs("image", args, kwargs))["image"]

    def token_patches(self, grid: Grid) -> Tensor:
        return patches_of_tokens(grid, self.merge)

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        call = calls[-1]
        real = real_patches(call)
        if real is None:
            received = patch_attention(call, kind, False, self.encoder_queries)
        else:
            received = torch.zeros(real.shape, device=real.device)
            for image, mask in enumerate(real):
                one = call.part(itemgetter((slice(image, image + 1), slice(None), mask)))
                received[image, mask] = patch_attention(one, kind, False, self.encoder_queries)[0]
        return [block_means(image, grid, self.merge) for image, grid in zip(received, grids, strict=True)]

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return [block_means(image, grid, self.merge) for image, grid in zip(hidden, grids, strict=True)]

    def padding(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], grids: list[Grid]) -> list[Tensor]:
        """Tokens of patches that the caller's ``pixel_attention_mask`` leaves out, where it leaves out any."""
        mask = args[1] if len(args) > 1 else kwargs.get("patch_attention_mask")
        if mask is None:
            return super().padding(args, kwargs, grids)
        shown = [
            block_means(image.flatten().float(), grid, self.merge) for image, grid in zip(mask, grids, strict=True)
        ]
        return [image == 0 for image in shown]


def real_patches(call: AttentionCall) -> Tensor | None:
    """(B, L) bool: the patches that the call attends to; None where that is all of them."""
    mask = call.mask
    if mask is None:
        return None
    allowed = mask.bool() if not mask.is_floating_point() else mask > torch.finfo(mask.dtype).min / 2
    real = allowed[:, 0].any(1) if allowed.ndim == 4 else allowed
    return None if bool(real.all()) else real
