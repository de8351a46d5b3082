"""Gemma 4: pictures of any size in squares of patches, averaged; images and the frames of clips."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, ClassVar

from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, ModelAdapter, patch_attention
from .moe import weights_per_expert
from .registry import register_model
from .tower import block_means


@register_model
class Gemma4Adapter(ModelAdapter):
    """``Gemma4ForConditionalGeneration``; sound is left as it is.

    Each frame of a clip is an image of its own, with a budget of its own. In the larger models the tokens of an image
    attend to each other in both directions in layers with a window, and so do those that are kept. In the smaller ones
    some layers take the keys and values of lower ones, so that methods inside the language model act below these.

    The encoder-attention cue is the attention that a patch receives on average in the last layer (see
    `encoder_queries`); it is averaged over the patches of an LLM token. Encoder features are averaged by the encoder.
    """

    model_type = "gemma4"
    class_name = "Gemma4ForConditionalGeneration"
    oldest = "5.17"
    relatives: ClassVar[tuple[str, ...]] = ("gemma3",)
    modalities = ("image", "video")
    token_arguments = ("per_layer_inputs", "per_layer_input")

    @property
    def vision(self) -> Any:
        return self.base.vision_tower

    @property
    def projector(self) -> nn.Module:
        return self.base.embed_vision

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return self.model.config.vision_config.pooling_kernel_size

    def source_of_keys(self, layer: int) -> int:
        attention = self.text.layers[layer].self_attn
        if not attention.is_kv_shared_layer:
            return layer
        return max(
            index
            for index, below in enumerate(self.text.layers)
            if below.self_attn.store_full_length_kv and below.self_attn.layer_type == attention.layer_type
        )

    def routed_weights(self) -> list[int]:
        chosen = getattr(self.text.config, "top_k_experts", None) or 0
        experts = [getattr(layer, "experts", None) for layer in self.text.layers]
        return [0 if one is None else chosen * weights_per_expert(one) for one in experts]

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id, "video": self.model.config.video_token_id}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        out = {}
        for modality in self.modalities:
            positions = inputs.get(f"{modality}_position_ids")
            if positions is not None:
                sizes = positions.flatten(0, -3).amax(1) + 1  # (images or frames, 2): columns and rows of patches
                out[modality] = [Grid(y // self.merge, x // self.merge) for x, y in sizes.tolist()]
        return out

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        positions = kwargs["pixel_position_ids"] if "pixel_position_ids" in kwargs else args[1]
        return {f"{modality}_position_ids": positions}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        out = []
        for image, grid in enumerate(grids):  # behind its patches, which are in raster order, lies padding
            real = (slice(image, image + 1), slice(None), slice(self.patches(grid)))
            call = calls[-1].part(itemgetter(real))
            received = patch_attention(call, kind, False, self.encoder_queries)[0]
            out.append(block_means(received, grid, self.merge))
        return out

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return list(hidden.split([len(grid) for grid in grids]))
