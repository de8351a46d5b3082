"""Qwen2.5-VL in vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models import qwen2_5_vl as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.qwen2_5_vl import Qwen25VLAdapter
from ..family import QwenFamily
from ..model import PrunesMRope
from ..processor import PrunesPrompts


class Qwen25VLFamily(QwenFamily):
    """Dynamic resolution, M-RoPE whose first position follows the clock of a clip."""

    adapter_class = Qwen25VLAdapter

    def seconds(self, modality: str, batch: Mapping[str, Any], count: int) -> list[float]:
        given = batch.get("second_per_grid_ts")
        if modality == "image" or given is None:
            return [1.0] * count
        rate = getattr(self.adapter.model.config.vision_config, "tokens_per_second", 1.0)
        return [float(seconds) * rate for seconds in given.flatten().tolist()]


class Processor(PrunesPrompts, upstream.Qwen2_5_VLMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Qwen25VLFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Qwen2_5_VLProcessingInfo, dummy_inputs=upstream.Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen25VL(PrunesMRope, upstream.Qwen2_5_VLForConditionalGeneration):
    """``Qwen2_5_VLForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Qwen25VLFamily
