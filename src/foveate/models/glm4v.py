"""GLM-4.1V: like Qwen2-VL, with a convolution that joins patches and clips whose placeholders are those of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..tokens import Grid
from .qwen_vl import QwenVLAdapter
from .registry import register_model

_VIDEO = 2  # in mm_token_type_ids


@register_model
class Glm4vAdapter(QwenVLAdapter):
    """``Glm4vForConditionalGeneration``; the encoder-attention cue is read in the last block.

    A clip is one image of several frames: the processor writes the time behind each frame, and that text is never
    pruned. Its tokens are those of images, so that ``mm_token_type_ids`` tell them apart. The encoder is handed frames
    one by one: methods before it keep their share of each frame.
    """

    model_type = "glm4v"
    class_name = "Glm4vForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("qwen2_5_vl", "qwen2_vl")

    @property
    def projector(self) -> nn.Module:
        return self.vision.downsample

    def token_modules(self) -> list[nn.Module]:
        return [self.projector, self.vision.merger]

    def token_outputs(self) -> list[nn.Module]:
        return [self.vision.merger]

    def token_ids(self) -> dict[str, int]:
        return dict.fromkeys(self.modalities, self.model.config.image_token_id)

    def find_placeholders(self, modality: str, input_ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        places, kinds = super().find_placeholders(modality, input_ids, inputs), inputs.get("mm_token_type_ids")
        if kinds is None:  # the model itself takes images or clips, never both
            clips = inputs.get("video_grid_thw") is not None and inputs.get("image_grid_thw") is None
            return places if clips == (modality == "video") else torch.zeros_like(places)
        kinds = kinds[:, -places.shape[1] :].to(places.device)  # those of tokens in the cache may be there, too
        kinds = pad(kinds, (0, places.shape[1] - kinds.shape[1]))  # what was generated since is text
        return places & ((kinds == _VIDEO) == (modality == "video"))

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Of images; the encoder does not know which frames make a clip, but the model is told beside it."""
        return super().grid_inputs(modality, args, kwargs) if modality == "image" else {}

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        """Means over the patches that the convolution joins, of `hidden` (n, e, rows, columns)."""
        return list(hidden.mean((2, 3)).split([len(grid) for grid in grids]))
