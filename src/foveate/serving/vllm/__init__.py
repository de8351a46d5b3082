"""The vLLM plugin: images and clips are pruned between vLLM's encoder and its language model.

vLLM finds `register` by its entry point (group ``vllm.general_plugins``) and calls it in every process. Nothing changes
for requests that do not ask for pruning; what cannot be pruned is refused to those that ask. docs/guides/vllm.md shows
how to ask.
"""

from __future__ import annotations

# architecture -> module in `families`, class, whether its positions are M-RoPE's
ARCHITECTURES = {
    "Qwen2VLForConditionalGeneration": ("qwen2_vl", "PrunedQwen2VL", True),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_5_vl", "PrunedQwen25VL", True),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", "PrunedQwen3VL", True),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3_vl_moe", "PrunedQwen3VLMoe", True),
    "Qwen3_5ForConditionalGeneration": ("qwen3_5", "PrunedQwen35", True),
    "Qwen3_5MoeForConditionalGeneration": ("qwen3_5", "PrunedQwen35Moe", True),
    "Glm4vForConditionalGeneration": ("glm4v", "PrunedGlm4v", True),
    "Glm4vMoeForConditionalGeneration": ("glm4v", "PrunedGlm4vMoe", True),
    "GlmOcrForConditionalGeneration": ("glm4v", "PrunedGlmOcr", True),
    "PaddleOCRVLForConditionalGeneration": ("paddleocr_vl", "PrunedPaddleOCRVL", True),
    "Qwen2_5OmniModel": ("qwen2_5_omni", "PrunedQwen25Omni", True),
    "Qwen2_5OmniForConditionalGeneration": ("qwen2_5_omni", "PrunedQwen25Omni", True),
    "LlavaForConditionalGeneration": ("llava", "PrunedLlava", False),
    "InternVLForConditionalGeneration": ("internvl", "PrunedInternVL", False),
    "LlavaNextForConditionalGeneration": ("llava_next", "PrunedLlavaNext", False),
    "LlavaOnevisionForConditionalGeneration": ("llava_onevision", "PrunedLlavaOnevision", False),
    "Mistral3ForConditionalGeneration": ("mistral3", "PrunedMistral3", False),
    "Idefics3ForConditionalGeneration": ("idefics3", "PrunedIdefics3", False),
    "SmolVLMForConditionalGeneration": ("smolvlm", "PrunedSmolVLM", False),
    "Lfm2VlForConditionalGeneration": ("lfm2_vl", "PrunedLfm2Vl", False),
    "LlavaNextVideoForConditionalGeneration": ("llava_next_video", "PrunedLlavaNextVideo", False),
    "Llama4ForConditionalGeneration": ("llama4", "PrunedLlama4", False),
    "Cohere2VisionForConditionalGeneration": ("cohere2_vision", "PrunedCohere2Vision", False),
}


def register() -> None:
    """Tell vLLM of the model classes that can prune, and hook the checks in; may be called again."""
    from vllm import ModelRegistry

    from .faults import share_faults
    from .hooks import install

    for architecture, (module, name, _) in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, f"{__name__}.families.{module}:{name}")
    share_faults()
    install()
