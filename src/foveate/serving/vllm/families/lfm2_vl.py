"""LFM2-VL in vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vllm.model_executor.models import lfm2_vl as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.adapter import AttentionCall
from ....models.lfm2_vl import Lfm2VlAdapter
from ....tokens import Grid
from ..family import TiledFamily
from ..model import PrunesImages
from ..processor import PrunesPrompts


class Lfm2VlFamily(TiledFamily):
    """Tiles of any size, each with a budget of its own, with text between them.

    vLLM encodes all tiles as one sequence, transformers one a row, padded behind its patches.
    """

    adapter_class = Lfm2VlAdapter
    tile_counts = "num_patches"
    of_tiles = ("pixel_values", "spatial_shapes")

    def __init__(self, config: Any, model: Any = None) -> None:
        within = None if model is None else SimpleNamespace(vision_tower=model.vision_tower.vision_model)
        super().__init__(config, within)

    def calls(self, query: Tensor, key: Tensor, scaling: float, grids: list[Grid]) -> list[AttentionCall]:
        query, key = (self._padded(one, grids).transpose(1, 2) for one in (query, key))
        return [AttentionCall(query, key, scaling)]

    def features(self, hidden: Tensor, grids: list[Grid]) -> Tensor:
        return self._padded(hidden, grids)

    def _padded(self, packed: Tensor, grids: list[Grid]) -> Tensor:
        """(B, S, ...) of (1, P, ...)."""
        return pad_sequence(packed[0].split([self.adapter.patches(grid) for grid in grids]), batch_first=True)


class Processor(PrunesPrompts, upstream.Lfm2VLMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Lfm2VlFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Lfm2VLProcessingInfo, dummy_inputs=upstream.Lfm2VLDummyInputsBuilder
)
class PrunedLfm2Vl(PrunesImages, upstream.Lfm2VLForConditionalGeneration):
    """``Lfm2VlForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Lfm2VlFamily
