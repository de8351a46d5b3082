"""LFM2-VL: SigLIP 2 at any size, pixel unshuffle, projector, and LFM2, whose layers mostly convolve."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, RecurrentState, patch_attention
from .registry import register_model
from .tower import TowerAdapter, block_means


@register_model
class Lfm2VlAdapter(TowerAdapter):
    """``Lfm2VlForConditionalGeneration``.

    A large picture is cut into tiles, with the whole of it in small behind them; each is an image of its own, with a
    budget of its own. The tokens that tell a tile's row and column are text, which is never pruned.

    The encoder-attention cue is the attention that a patch receives on average in the last layer (see
    `encoder_queries`); it and the encoder features are averaged over the patches of an LLM token. Layers of the
    language model that convolve have no attention that could be read, so methods inside it act at the next layer where
    they can.
    """

    model_type = "lfm2_vl"
    class_name = "Lfm2VlForConditionalGeneration"
    hybrid = True

    @property
    def last_norm(self) -> Any:
        return self.text.embedding_norm

    def recurrent_state(self, layer: int) -> RecurrentState | None:
        short = getattr(self.text.layers[layer], "conv", None)
        return None if short is None else RecurrentState(0, short.conv.weight.shape[0] * short.conv_kernel_size)

    @property
    def projector(self) -> nn.Module:
        """The tower's last norm: how the projector is called, for each image or for all, depends on transformers."""
        return self.vision.post_layernorm

    def token_modules(self) -> list[nn.Module]:
        return [self.base.multi_modal_projector]

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return self.model.config.downsample_factor

    def grid(self, height: int, width: int) -> Grid:
        side = self.model.config.vision_config.patch_size * self.merge
        return Grid(height // side, width // side)

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        shapes = inputs.get("spatial_shapes")  # in patches
        if shapes is None:
            return {}
        return {"image": [Grid(rows // self.merge, columns // self.merge) for rows, columns in shapes.tolist()]}

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"spatial_shapes": args[2] if len(args) > 2 else kwargs["spatial_shapes"]}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        call, found = calls[-1], []
        for image, grid in enumerate(grids):  # padded behind its patches to those of the largest; not counted as costs
            own = slice(image, image + 1), slice(None), slice(self.patches(grid))
            received = patch_attention(call.part(itemgetter(own)), kind, False, self.encoder_queries)[0]
            found.append(block_means(received, grid, self.merge))
        return found

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        norm = self.vision.post_layernorm
        hidden = norm.forward(hidden.to(norm.weight.dtype))  # past hooks, which brought it here
        parts = zip(hidden, grids, strict=True)
        return [block_means(part[: self.patches(grid)], grid, self.merge) for part, grid in parts]
