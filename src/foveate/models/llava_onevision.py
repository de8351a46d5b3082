"""LLaVA-OneVision: the tiles of LLaVA-NeXT with a SigLIP tower, pictures of several without tiles, and clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..tokens import Grid
from .llava_next import LlavaNextAdapter, TiledGrid, as_large
from .registry import register_model

_ENLARGED = 1.1  # up to this factor along each side, more tokens than the budget of the tiles stay as they are


@register_model
class LlavaOnevisionAdapter(LlavaNextAdapter):
    """``LlavaOnevisionForConditionalGeneration``.

    A picture is two grids as in LLaVA-NeXT; the second is made smaller where it exceeds what the model allows. A prompt
    with several pictures, of which the processor says so in ``batch_num_images``, has one grid for each, and so has a
    clip, of one frame for each picture and a quarter of its tokens. Placeholders at the end of lines, of pictures
    without tiles and of clips always stay.
    """

    model_type = "llava_onevision"
    class_name = "LlavaOnevisionForConditionalGeneration"
    relatives = ("llava_next", "llava")
    modalities = ("image", "video")

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id, "video": self.model.config.video_token_id}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        clips = inputs.get("pixel_values_videos")
        if clips is None:
            return super().grids(inputs)
        side = math.ceil(self.side / 2)
        return {**super().grids(inputs), "video": [Grid(side, side, len(clip)) for clip in clips]}

    def placeholders(self, inputs: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        out = {"image": [run for image in self._images(inputs) for run in self.runs("image", image)]}
        clips = self.grids(inputs).get("video", [])
        out["video"] = [run for clip in clips for run in self.runs("video", [clip])]
        return {kind: runs for kind, runs in out.items() if runs}

    def runs(self, modality: str, grids: Sequence[Grid]) -> list[Tensor]:
        runs = super().runs(modality, grids)
        return runs if len(grids) > 1 else [functional.pad(runs[0], (0, 1))]

    def _images(self, inputs: Mapping[str, Any]) -> list[list[Grid]]:
        images, numbers = super()._images(inputs), inputs.get("batch_num_images")
        if not images or numbers is None:
            return images
        several = [int(number) > 1 for number in numbers for _ in range(int(number))]
        return [image[:1] if one else image for image, one in zip(images, several, strict=True)]

    def count_after_resize(self, rows: int, columns: int) -> tuple[int, int]:
        most = int(self.model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * self.side**2))
        return (rows, columns) if ratio <= _ENLARGED else (int(rows // ratio), int(columns // ratio))

    def of_grid(self, tiles: Tensor, grid: Grid) -> Tensor:
        if isinstance(grid, TiledGrid) or grid.rows == self.side:
            return super().of_grid(tiles, grid)
        frames = tiles.unflatten(1, (self.side, self.side))
        return torch.cat([as_large(frame, grid).flatten(0, 1) for frame in frames])
