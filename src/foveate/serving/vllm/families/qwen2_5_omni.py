"""Qwen2.5-Omni's thinker in vLLM: Qwen2.5-VL that hears, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models import qwen2_5_omni_thinker as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....errors import ModelError
from ....models.qwen2_5_omni import Qwen25OmniThinkerAdapter
from ..family import QwenFamily
from ..model import PrunesMRope
from ..processor import PrunesPrompts
from ..request import PruneRequest


class Qwen25OmniFamily(QwenFamily):
    """Dynamic resolution, M-RoPE whose first position follows the clock of a clip; the config is the whole model's."""

    adapter_class = Qwen25OmniThinkerAdapter

    def __init__(self, config: Any, model: Any = None) -> None:
        super().__init__(config.thinker_config, model)

    def seconds(self, modality: str, batch: Mapping[str, Any], count: int) -> list[float]:
        given = batch.get("second_per_grid_ts")
        if modality == "image":
            return [1.0] * count
        # As vLLM has it, which asks the vision encoder's config, where transformers asks the thinker's.
        rate = getattr(self.adapter.model.config.vision_config, "tokens_per_second", 25)
        return [rate * float(seconds) for seconds in ([1.0] * count if given is None else given.flatten().tolist())]


class Processor(PrunesPrompts, upstream.Qwen2_5OmniThinkerMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Qwen25OmniFamily

    def _shorten_update(self, update: Any, request: PruneRequest, modality: str, item: Mapping[str, Any]) -> Any:
        joined = item.get("use_audio_in_video")
        if joined is not None and bool(joined.data):
            raise ModelError(
                "with use_audio_in_video what is heard stands between the frames of a clip, so that vLLM must know how "
                "many tokens of each frame stay; leave it out, or add foveate_keep=1.0 to the request."
            )
        return super()._shorten_update(update, request, modality, item)


@MULTIMODAL_REGISTRY.register_processor(
    Processor,
    info=upstream.Qwen2_5OmniThinkerProcessingInfo,
    dummy_inputs=upstream.Qwen2_5OmniThinkerDummyInputsBuilder,
)
class PrunedQwen25Omni(PrunesMRope, upstream.Qwen2_5OmniThinkerForConditionalGeneration):
    """``Qwen2_5OmniForConditionalGeneration``, its thinker, that prunes what requests ask for."""

    family_class = Qwen25OmniFamily
