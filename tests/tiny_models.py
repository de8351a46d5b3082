"""Tiny random models for tests, with tokenizers and image processors that need neither the hub nor torchvision.

Weights are larger than usual, so that dropping visual tokens visibly moves the logits. Random models emit
placeholder tokens; pass ``suppress_tokens=zoo.visual_ids`` to ``generate``. Seeds are such that different methods
choose differently. Makers take the width of an attention head of the LLM, for engines that serve only some.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

_CORPUS = "what is in the picture? a red square on a blue background, and a small green circle below it. "


@dataclass(frozen=True)
class Processor:
    """Tokenizer and image processor side by side, and how many LLM tokens each image takes."""

    tokenizer: tf.PreTrainedTokenizerFast
    image_processor: Any
    image_token: str
    tokens_per_image: int | None = None  # None: read from the grid
    merge_size: int = 1

    def __call__(self, images: Sequence[Sequence[Image.Image]], texts: Sequence[str]) -> dict[str, Tensor]:
        """Left-padded batch; each text holds one `image_token` for each of its images."""
        media: dict[str, Tensor] = {}
        counts: list[int] = []
        if flat := [image for prompt in images for image in prompt]:
            media = dict(self.image_processor(images=flat, return_tensors="pt"))
            counts = [self.tokens_per_image] * len(flat) if self.tokens_per_image else self._grid_counts(media)
        pending = iter(counts)
        expanded = [
            self._expand(text, [next(pending) for _ in prompt]) for prompt, text in zip(images, texts, strict=True)
        ]
        return {**self.tokenize(expanded), **media}

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`texts` with all placeholders in place: input_ids, attention_mask, mm_token_type_ids."""
        encoded = self.tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=False)
        ids = encoded["input_ids"]
        kinds = (ids == self.tokenizer.image_token_id).long()
        if (video := getattr(self.tokenizer, "video_token_id", None)) is not None:
            kinds += 2 * (ids == video).long()
        return {"input_ids": ids, "attention_mask": encoded["attention_mask"], "mm_token_type_ids": kinds}

    def _grid_counts(self, media: dict[str, Tensor]) -> list[int]:
        return (media["image_grid_thw"].prod(-1) // self.merge_size**2).tolist()

    def _expand(self, text: str, counts: Sequence[int]) -> str:
        head, *rest = text.split(self.image_token)
        return head + "".join(self.image_token * n + tail for n, tail in zip(counts, rest, strict=True))


@dataclass(frozen=True)
class Zoo:
    """One tiny model and what tests need to feed it."""

    name: str
    model: Any
    processor: Processor
    image: str  # what stands for one image in a prompt
    visual_ids: tuple[int, ...]  # ids of the image and video placeholders

    @property
    def mrope(self) -> bool:
        """Whether positions are of time, row and column; such models read the grids and ``mm_token_type_ids``."""
        return "mrope_section" in self.model.config.get_text_config().rope_parameters

    @property
    def tokenizer(self) -> tf.PreTrainedTokenizerFast:
        return self.processor.tokenizer


def picture(h: int = 56, w: int = 56, seed: int = 0) -> Image.Image:
    """Random noise, h x w pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))


def inputs(
    zoo: Zoo, images_per_prompt: Sequence[Sequence[Image.Image]], texts: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Padded batch tensors; each prompt is its images followed by its text (texts of different length by default).

    ``mm_token_type_ids`` is there only for models whose forward takes it.
    """
    if texts is None:
        texts = [_CORPUS[: 24 + 12 * (i % 5)] for i in range(len(images_per_prompt))]
    prompts = ["<s>" + zoo.image * len(images) + text for images, text in zip(images_per_prompt, texts, strict=True)]
    batch = zoo.processor(images_per_prompt, prompts)
    if "mm_token_type_ids" not in inspect.signature(zoo.model.forward).parameters:
        batch.pop("mm_token_type_ids", None)
    return batch


def video_inputs(
    zoo: Zoo, frames: int = 2, rows: int = 2, columns: int = 3, seed: int = 0, text: str = "what is in the picture?"
) -> dict[str, Tensor]:
    """A Qwen-VL prompt with one clip of `frames` x `rows` x `columns` LLM tokens, its patches laid out by hand."""
    patch, merge, temporal = zoo.processor.image_processor.patch_size, zoo.processor.merge_size, 2
    grid = (frames, rows * merge, columns * merge)
    shape = (frames, temporal, 3, rows, merge, patch, columns, merge, patch)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    patches = pixels.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(5).flatten(0, 4)
    frame = f"<|vision_start|>{'<|video_pad|>' * rows * columns}<|vision_end|>"
    if zoo.name.startswith("qwen3_"):  # each frame is a run of its own, after the time at which it was taken
        clip = "".join(f"<{time}.5 seconds>{frame}" for time in range(frames))
    else:
        clip = frame.replace("<|video_pad|>", "<|video_pad|>" * frames)
    prompt = f"<s>{clip}{text}"
    media = {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([grid])}
    if zoo.name == "qwen2_5_vl":  # the one family whose positions follow the clock
        media["second_per_grid_ts"] = torch.ones(1)
    return {**zoo.processor.tokenize([prompt]), **media}


@functools.cache
def llava(head_dim: int = 16) -> Zoo:
    """LLaVA-1.5 in small: CLIP tower of 56 px with patch 14, i.e. 16 visual tokens; Llama of 4 layers."""
    tokenizer = _tokenizer(image_token="<image>")
    vision = tf.CLIPVisionConfig(
        image_size=56,
        patch_size=14,
        projection_dim=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
    )
    config = tf.LlavaConfig(
        vision_config=vision,
        text_config=tf.LlamaConfig(vocab_size=len(tokenizer), **_llm(head_dim)),
        image_token_id=tokenizer.image_token_id,
        image_seq_length=16,
    )
    images = tf.CLIPImageProcessorPil(size={"height": 56, "width": 56}, crop_size={"height": 56, "width": 56})
    processor = Processor(tokenizer, images, "<image>", tokens_per_image=16)
    model = _scaled(tf.LlavaForConditionalGeneration(config))
    return Zoo("llava", model, processor, "<image>", (tokenizer.image_token_id,))


@functools.cache
def qwen2_vl(head_dim: int = 16) -> Zoo:
    """Qwen2-VL in small: M-RoPE, full attention in both layers of the tower."""
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return _qwen(tf.Qwen2VLForConditionalGeneration, head_dim, {**vision, "hidden_size": 4 * head_dim})


@functools.cache
def qwen2_5_vl(head_dim: int = 16) -> Zoo:
    """Qwen2.5-VL in small: M-RoPE, window attention in layer 0 of the tower, full attention in layer 1."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 4 * head_dim,
        "num_heads": 2,
        "patch_size": 14,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    return _qwen(tf.Qwen2_5_VLForConditionalGeneration, head_dim, vision)


@functools.cache
def qwen3_vl(head_dim: int = 16) -> Zoo:
    """Qwen3-VL in small: interleaved M-RoPE, DeepStack rows after the first two of four decoder layers."""
    return _qwen3(tf.Qwen3VLForConditionalGeneration, head_dim)


@functools.cache
def qwen3_vl_moe(head_dim: int = 16) -> Zoo:
    """Qwen3-VL-MoE in small: 2 of 8 experts for each token, in all decoder layers but layer 0, which is dense."""
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0]}
    return _qwen3(tf.Qwen3VLMoeForConditionalGeneration, head_dim, **experts)


@functools.cache
def qwen3_5(head_dim: int = 16) -> Zoo:
    """Qwen3.5 in small: 12 layers, of which 3, 7 and 11 attend to all tokens and the others carry a state."""
    return _qwen35(tf.Qwen3_5ForConditionalGeneration, head_dim)


@functools.cache
def qwen3_5_moe(head_dim: int = 16) -> Zoo:
    """Qwen3.5-MoE in small: 2 of 8 experts for each token and one for all, in all decoder layers."""
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return _qwen35(
        tf.Qwen3_5MoeForConditionalGeneration, head_dim, **experts, shared_expert_intermediate_size=2 * head_dim
    )


def _qwen35(cls: Any, head_dim: int, **text: Any) -> Zoo:
    kinds = [*["linear_attention"] * 3, "full_attention"] * 3
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    widths = {"linear_key_head_dim": head_dim, "linear_value_head_dim": head_dim}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 4 * head_dim,
        "num_heads": 2,
        "patch_size": 16,
        "num_position_embeddings": 64,
    }
    text = {"num_hidden_layers": len(kinds), "layer_types": kinds, **heads, **widths, **text}
    return _qwen(cls, head_dim, vision, (2, 1, 1), 1, text, mrope_interleaved=True, partial_rotary_factor=0.5)


def _qwen3(cls: Any, head_dim: int, **text: Any) -> Zoo:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 4 * head_dim,
        "num_heads": 2,
        "patch_size": 16,
        "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 64,
    }
    return _qwen(cls, head_dim, vision, sections=(3, 3, 2), seed=1, text=text, mrope_interleaved=True)


def _qwen(
    cls: Any,
    head_dim: int,
    vision: dict[str, Any],
    sections: Sequence[int] = (2, 3, 3),
    seed: int = 0,
    text: dict[str, Any] | None = None,
    **rope: Any,
) -> Zoo:
    """`sections` are of a head of 16: how many of its 8 frequencies go with time, row and column."""
    tokenizer = _tokenizer(
        "<|vision_start|>", "<|vision_end|>", image_token="<|image_pad|>", video_token="<|video_pad|>"
    )
    rope |= {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [n * head_dim // 16 for n in sections]}
    config = cls.config_class(
        text_config={"vocab_size": len(tokenizer), "rope_parameters": rope, **_llm(head_dim), **(text or {})},
        vision_config=vision,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    side = 2 * vision["patch_size"]
    images = tf.Qwen2VLImageProcessorPil(
        patch_size=vision["patch_size"],
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": side**2, "longest_edge": 1296 * side**2},
    )
    processor = Processor(tokenizer, images, "<|image_pad|>", merge_size=2)
    visual = (tokenizer.image_token_id, tokenizer.video_token_id)
    prompt = "<|vision_start|><|image_pad|><|vision_end|>"
    return Zoo(config.model_type, _scaled(cls(config), seed), processor, prompt, visual)


@functools.cache
def internvl(head_dim: int = 16) -> Zoo:
    """InternVL in small: tiles of 112 px with patch 14 and pixel shuffle, i.e. 16 visual tokens; Qwen2 of 4 layers."""
    tokenizer = _tokenizer(
        image_token="<IMG_CONTEXT>",
        context_image_token="<IMG_CONTEXT>",  # what transformers' own processor calls it
        start_image_token="<img>",
        end_image_token="</img>",
        video_token="<video>",
    )
    vision = {
        "image_size": [112, 112],
        "patch_size": [14, 14],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    config = tf.InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **_llm(head_dim)},
        image_token_id=tokenizer.image_token_id,
        image_seq_length=16,
    )
    images = tf.CLIPImageProcessorPil(size={"height": 112, "width": 112}, crop_size={"height": 112, "width": 112})
    processor = Processor(tokenizer, images, "<IMG_CONTEXT>", tokens_per_image=16)
    model = _scaled(tf.InternVLForConditionalGeneration(config), seed=1)
    return Zoo("internvl", model, processor, "<img><IMG_CONTEXT></img>", (tokenizer.image_token_id,))


def _llm(head_dim: int) -> dict[str, int]:
    """Four layers with two heads of queries to one of keys."""
    widths = {"hidden_size": 4 * head_dim, "intermediate_size": 8 * head_dim, "head_dim": head_dim}
    counts = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    return widths | counts | {"max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _tokenizer(*extra: str, **named: str) -> tf.PreTrainedTokenizerFast:
    """Byte-level BPE trained in memory; `named` tokens become attributes such as ``image_token_id``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(named.values()), *extra],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([_CORPUS * 4], trainer)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=named,
    )


def _scaled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of standard deviation 0.9 / sqrt(fan in), ones for norms, zeros for biases.

    Weights of experts are stacked: the fan in of each is the last dimension.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                fan_in = weight.shape[-1] if ".experts." in name else weight[0].numel()
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.9 / fan_in**0.5)
            elif name.endswith("bias"):
                weight.zero_()
            elif name.endswith("A_log"):  # how fast states decay, which transformers draws at random
                weight.copy_(torch.linspace(1, 8, len(weight)).log())
            elif name.endswith("class_embedding"):  # else it would depend on what ran before
                apart = torch.Generator().manual_seed(seed)
                weight.copy_(torch.randn(weight.shape, generator=apart) / len(weight) ** 0.5)
    return model.eval()


@functools.cache
def windowed(kind: str) -> Zoo:
    """LLaVA or Qwen2.5-VL with layers that attend within a window of 8: 24 tokens and more are past it.

    Args:
        kind: ``"mistral"`` in all layers, ``"gemma3"`` in three of four, ``"llama4"`` in chunks in three of four,
            ``"qwen2_5_vl"`` in every second one.
    """
    base = qwen2_5_vl() if kind == "qwen2_5_vl" else llava()
    text = {"vocab_size": base.model.config.get_text_config().vocab_size, **_llm(16), "sliding_window": 8}
    config = copy.deepcopy(base.model.config)
    sliding, full = "sliding_attention", "full_attention"
    if kind == "mistral":
        config.text_config = tf.MistralConfig(**text)
    elif kind == "gemma3":
        kinds = [sliding, sliding, full, sliding]
        config.text_config = tf.Gemma3TextConfig(**text, layer_types=kinds, query_pre_attn_scalar=16)
    elif kind == "llama4":
        kinds = ["chunked_attention", full, "chunked_attention", "chunked_attention"]
        sparse = {"num_local_experts": 2, "intermediate_size_mlp": 96, "moe_layers": [], "no_rope_layers": [1, 0, 1, 1]}
        config.text_config = tf.Llama4TextConfig(**text, **sparse, layer_types=kinds, attention_chunk_size=8)
    else:
        config.text_config.layer_types = [full, sliding, full, sliding]
        config.text_config.use_sliding_window, config.text_config.sliding_window = True, 8
    return replace(base, name=f"{base.name}-{kind}", model=_scaled(type(base.model)(config)))


MAKERS = (llava, qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, internvl)
VIDEO_MAKERS = (qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe)
HYBRID_MAKERS = (qwen3_5, qwen3_5_moe)
