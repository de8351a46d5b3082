"""What the families with a Pixtral tower have in common in vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.transformers_utils.processor import cached_processor_from_config

from ....tokens import Grid
from ..family import Family
from ..layout import TOKEN


class PixtralFamily(Family):
    """Images of any size; the text that ends each row but the last lies between tokens of the image."""

    def grids(self, modality: str, item: Mapping[str, Any]) -> list[Grid]:
        return self.adapter.grids({"image_sizes": [item["pixel_values"].shape[-2:]]})[modality]

    def items(self, modality: str, batch: Mapping[str, Any]) -> list[list[Grid]]:
        return [self.grids(modality, {"pixel_values": pixels}) for pixels in batch["pixel_values"]]

    def layouts(self, modality: str, grids: Sequence[Grid]) -> list[Tensor]:
        return [self._layout(grid) for grid in grids]

    def _layout(self, grid: Grid) -> Tensor:
        rows = torch.full((grid.rows, grid.columns + 1), TOKEN)
        rows[:, -1] = self._end_of_row
        return rows.flatten()[:-1]

    @cached_property
    def _end_of_row(self) -> int:
        processor: Any = cached_processor_from_config(self.model_config)
        return int(processor.tokenizer.convert_tokens_to_ids(processor.image_break_token))

    def attention(self) -> Any:
        # vLLM builds the tower up to the layer whose output becomes the visual feature, and no further.
        return self.adapter.vision_layers()[-1].attention.attn
