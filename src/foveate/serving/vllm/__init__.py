"""The vLLM plugin: images and clips are pruned between vLLM's encoder and its language model.

vLLM finds `register` by its entry point (group ``vllm.general_plugins``) and calls it in every process. Nothing changes
for requests that do not ask for pruning. docs/guides/vllm.md shows how to ask.
"""

from __future__ import annotations

from typing import Any

# architecture -> module in `families`, class, whether its positions are M-RoPE's
_ARCHITECTURES = {
    "Qwen2VLForConditionalGeneration": ("qwen2_vl", "PrunedQwen2VL", True),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_5_vl", "PrunedQwen25VL", True),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", "PrunedQwen3VL", True),
    "LlavaForConditionalGeneration": ("llava", "PrunedLlava", False),
    "InternVLForConditionalGeneration": ("internvl", "PrunedInternVL", False),
}


def register() -> None:
    """Tell vLLM of the model classes that can prune; may be called again."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for architecture, (module, name, mrope) in _ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, f"{__name__}.families.{module}:{name}")
        MODELS_CONFIG_MAP.setdefault(architecture, _start_up(mrope))


def _start_up(mrope: bool) -> Any:
    from vllm.model_executor.models.config import VerifyAndUpdateConfig

    from .config import LIMITS_KEY, limits_of

    class StartUp(VerifyAndUpdateConfig):
        """Looks at a server's set-up before a model is loaded, and leaves what it found with the model's config."""

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            setattr(vllm_config.model_config.hf_config, LIMITS_KEY, limits_of(vllm_config, mrope))

    return StartUp
