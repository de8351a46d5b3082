"""Models of real size with random weights, and prompts of any number of visual tokens: what speed depends on."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import foveate

IMAGE, START, END = 1000, 1001, 1002  # the ids of the placeholder, and of what stands around an image
TEXT = 32  # text tokens of a prompt
LLAVA_TOKENS = 576  # per image
GRIDS = {576: (24, 24), 1296: (36, 36), 2880: (48, 60), 9216: (96, 96)}  # rows and columns of so many tokens


def _qwen(text: dict[str, Any], vision: dict[str, Any]) -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "out_hidden_size": text["hidden_size"]},
        image_token_id=IMAGE,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen_tiny() -> Any:
    """Qwen2.5-VL with a few narrow layers: to try out what measures larger ones."""
    text = {
        "vocab_size": 1100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    return _qwen(text, {**vision, "fullatt_block_indexes": [1]})


def qwen_small() -> Any:
    """Qwen2.5-VL with the language model of Qwen2.5-0.5B and a vision tower of 8 layers."""
    text = {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    vision = {"depth": 8, "hidden_size": 640, "intermediate_size": 1760, "num_heads": 10}
    return _qwen(text, {**vision, "fullatt_block_indexes": [3, 7]})


def _qwen_large(**text: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    return _qwen({**text, "rope_parameters": rope}, {**vision, "fullatt_block_indexes": [7, 15, 23, 31]})


def qwen_3b() -> Any:
    """Qwen2.5-VL-3B."""
    return _qwen_large(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )


def qwen_7b() -> Any:
    """Qwen2.5-VL-7B."""
    return _qwen_large(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )


def llava_7b() -> Any:
    """LLaVA-1.5-7B."""
    vision = transformers.CLIPVisionConfig(
        image_size=336,
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        projection_dim=768,
    )
    text = transformers.LlamaConfig(vocab_size=32064, max_position_embeddings=16384)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return transformers.LlavaForConditionalGeneration(config)


MODELS: dict[str, Callable[[], Any]] = {
    "qwen2.5-vl-tiny": qwen_tiny,
    "qwen2.5-vl-0.5b": qwen_small,
    "qwen2.5-vl-3b": qwen_3b,
    "qwen2.5-vl-7b": qwen_7b,
    "llava-1.5-7b": llava_7b,
}


def build(name: str, device: str, dtype: torch.dtype) -> Any:
    """The model of that name, its random weights made on the device and in the type in which they are used."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return MODELS[name]().eval()
    finally:
        torch.set_default_dtype(before)


def prompt(model: Any, tokens: int, batch: int = 1, images: int = 1) -> dict[str, Tensor]:
    """`batch` prompts of `images` of `tokens` visual tokens and `TEXT` text tokens each, as the processor returns them.

    LLaVA sees images of 576 tokens each, of which a prompt has as many as come nearest to `tokens`.
    """
    device, dtype = model.device, model.dtype
    generator = torch.Generator().manual_seed(0)
    half = TEXT // 2 - 1
    llava = model.config.model_type == "llava"
    tiles = images * max(1, round(tokens / LLAVA_TOKENS))
    visual = [START, *[IMAGE] * (tiles * LLAVA_TOKENS), END] if llava else [START, *[IMAGE] * tokens, END] * images
    ids = [*range(3, 3 + half), *visual, *range(50, 50 + half)]
    input_ids = torch.tensor([ids] * batch, device=device)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if llava:
        pixels = torch.randn(batch * tiles, 3, 336, 336, generator=generator)
        return {**inputs, "pixel_values": pixels.to(device, dtype)}
    rows, columns = GRIDS[tokens]
    pixels = torch.randn(batch * images * 4 * tokens, 3 * 2 * 14 * 14, generator=generator)
    return {
        **inputs,
        "mm_token_type_ids": (input_ids == IMAGE).long(),
        "pixel_values": pixels.to(device, dtype),
        "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]] * (batch * images), device=device),
    }


def machine(device: str) -> str:
    """Hardware and versions, for the record."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
        name += f", {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, foveate {foveate.__version__}"
    return f"{name}; {versions}; Python {platform.python_version()}"
