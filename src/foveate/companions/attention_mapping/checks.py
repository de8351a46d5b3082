"""Which models can run in step."""

from __future__ import annotations

from typing import Any

from ...errors import ModelError, RuntimeStateError
from ...models import adapter_of
from ...runtime.engine import is_pruned
from ...runtime.guide import vocabulary_of

# Language models whose attention is softmax(q k) v between the projections, as it was compared in tests.
_SERVED = ("llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text")
_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}


def decoder_of(model: Any) -> Any:
    """The module with the layers of the language model."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    if not hasattr(found, "layers"):
        raise ModelError(f"{type(model).__name__} is not a causal language model of transformers; give one.")
    return found


def check_models(large: Any, small: Any) -> None:
    """Raise unless both are of one family, read the same tokens and attend as `AttentionMapping` does."""
    for model in (large, small):
        name, text = type(model).__name__, decoder_of(model)
        for layer in text.layers:
            attention = getattr(layer, "self_attn", None)
            parts = set() if attention is None else {part for part, _ in attention.named_children()}
            if text.config.model_type not in _SERVED or not _PARTS - {"q_norm", "k_norm"} <= parts <= _PARTS:
                raise ModelError(
                    f"{name} attends in a way in which layers cannot be mapped; give models with language models of "
                    "the families Llama, Mistral, Qwen2 or Qwen3, without experts."
                )
            if getattr(attention, "sliding_window", None) or getattr(text.config, "sliding_window", None):
                raise ModelError(
                    f"{name} has layers with a sliding window, which cannot be mapped; set sliding_window=None in its "
                    "config if your prompts are shorter than the window."
                )
    kinds = [model.config.model_type for model in (small, large)]
    if kinds[0] != kinds[1]:
        raise ModelError(
            f"a {kinds[0]} and a {kinds[1]} model are of different families, whose attention cannot be mapped; give "
            "two sizes of one family."
        )
    names = [str(getattr(model, "name_or_path", "") or "") for model in (small, large)]
    words = [None, None] if names[0] == names[1] else [vocabulary_of(name) for name in names]
    sizes = [model.config.get_text_config().vocab_size for model in (small, large)]
    if sizes[0] != sizes[1] if None in words else words[0] != words[1]:
        raise ModelError(
            f"the models read other tokens (vocabularies of {sizes[0]} and {sizes[1]}); give two sizes of one family "
            "with the same tokenizer."
        )
    refuse_pruned(large, small)


def refuse_pruned(*models: Any) -> None:
    """Raise RuntimeStateError where foveate prunes one of the models."""
    for model in models:
        if hasattr(model, "get_placeholder_mask") or getattr(model.config, "vision_config", None) is not None:
            try:
                adapter = adapter_of(model)
            except ModelError:  # what foveate cannot prune is not pruned
                continue
            if is_pruned(adapter):
                raise RuntimeStateError(
                    "one of the models is pruned by foveate, so that the other attends to tokens which it does not "
                    "have; detach the pruning, or prune by a small model's attention with foveate.guided instead."
                )
