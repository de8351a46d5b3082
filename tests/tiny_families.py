"""Tiny random models of the families that `tests/models/test_families.py` runs, made like those of `tiny_models`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from packaging.version import Version
from PIL import Image
from torch import Tensor

import tiny_models
from tiny_models import Processor, Zoo, _llm, _scaled, _tokenizer

# LLaVA-NeXT and its kin, whose pictures are cut into tiles.
_PINPOINTS = [[56, 112], [112, 56], [112, 112]]


@dataclass(frozen=True)
class TiledProcessor(Processor):
    """Counts placeholders by the features that the model makes: its own processor needs torchvision for clips."""

    model: Any = None

    def _grid_counts(self, media: dict[str, Tensor]) -> list[int]:

        with torch.no_grad():
            return [len(image) for image in self.model.get_image_features(**media, return_dict=True).pooler_output]


@dataclass(frozen=True)
class OwnProcessor(Processor):
    """The family's processor itself, which knows how many placeholders each picture takes."""

    own: Any = None

    def __call__(self, images: Sequence[Sequence[Image.Image]], texts: Sequence[str]) -> dict[str, Tensor]:
        encoded = self.own(
            images=[image for prompt in images for image in prompt],
            text=list(texts),
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        )
        return dict(encoded)


def _siglip(size: int) -> dict[str, Any]:
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {
        "model_type": "siglip_vision_model",
        "image_size": size,
        "patch_size": 14,
        "vision_use_head": False,
        **widths,
    }


def _clip(size: int) -> dict[str, Any]:
    return {**_siglip(size), "model_type": "clip_vision_model", "projection_dim": 32}


@functools.cache
def llava_next(head_dim: int = 16) -> Zoo:
    """LLaVA-NeXT in small: CLIP tower of 56 px with patch 14, up to 2 x 2 tiles; Llama of 4 layers."""
    tokenizer = tiny_models._tokenizer(image_token="<image>")
    config = tf.LlavaNextConfig(
        vision_config=_clip(56),
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **tiny_models._llm(head_dim)},
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=_PINPOINTS,
    )
    size = {"height": 56, "width": 56}
    images = tf.LlavaNextImageProcessorPil(size=size, crop_size=size, image_grid_pinpoints=_PINPOINTS)
    own = tf.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor = OwnProcessor(tokenizer, images, "<image>", own=own)
    model = tiny_models._scaled(tf.LlavaNextForConditionalGeneration(config))
    return Zoo("llava_next", model, processor, "<image>", (tokenizer.image_token_id,))


@functools.cache
def llava_onevision(head_dim: int = 16) -> Zoo:
    """LLaVA-OneVision in small: SigLIP tower of 56 px with patch 14, tiles that are made smaller; Qwen2 of 4 layers."""
    tokenizer = tiny_models._tokenizer(image_token="<image>", video_token="<video>")
    config = tf.LlavaOnevisionConfig(
        vision_config=_siglip(56),
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **tiny_models._llm(head_dim)},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=_PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    size = {"height": 56, "width": 56}
    images = tf.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=_PINPOINTS)
    model = tiny_models._scaled(tf.LlavaOnevisionForConditionalGeneration(config))
    processor = TiledProcessor(tokenizer, images, "<image>", model=model)
    visual = (tokenizer.image_token_id, tokenizer.video_token_id)
    return Zoo("llava_onevision", model, processor, "<image>", visual)


# -- more of LLaVA's kin, and Cohere's: images and tiles of one size


@functools.cache
def llava_next_video(head_dim: int = 16, patch: int = 14) -> Zoo:
    """LLaVA-NeXT-Video in small: LLaVA-NeXT, and clips of 2 x 2 tokens a frame (4 x 4 with a `patch` of 7)."""
    tokenizer = tiny_models._tokenizer(image_token="<image>", video_token="<video>")
    config = tf.LlavaNextVideoConfig(
        vision_config={**_clip(56), "patch_size": patch},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **tiny_models._llm(head_dim)},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=_PINPOINTS,
    )
    model = tiny_models._scaled(tf.LlavaNextVideoForConditionalGeneration(config))
    images = llava_next().processor.image_processor
    processor = TiledProcessor(tokenizer, images, "<image>", model=model)
    visual = (tokenizer.image_token_id, tokenizer.video_token_id)
    return Zoo("llava_next_video", model, processor, "<image>", visual)


@functools.cache
def vipllava(head_dim: int = 16) -> Zoo:
    """VipLlava in small: 16 visual tokens, with the features of two layers of its CLIP tower; Llama of 4 layers."""
    tokenizer = tiny_models._tokenizer(image_token="<image>")
    config = tf.VipLlavaConfig(
        vision_config=_clip(56),
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **tiny_models._llm(head_dim)},
        image_token_index=tokenizer.image_token_id,
        vision_feature_layers=[-2, 1],
    )
    images = tf.CLIPImageProcessorPil(size={"height": 56, "width": 56}, crop_size={"height": 56, "width": 56})
    processor = Processor(tokenizer, images, "<image>", tokens_per_image=16)
    model = tiny_models._scaled(tf.VipLlavaForConditionalGeneration(config))
    return Zoo("vipllava", model, processor, "<image>", (tokenizer.image_token_id,))


@functools.cache
def aya_vision(head_dim: int = 16) -> Zoo:
    """Aya Vision in small: tiles of 112 px with patch 14 and pixel shuffle, i.e. 16 visual tokens; see `_cohere`."""
    return _shuffled(tf.AyaVisionForConditionalGeneration, head_dim, alignment_intermediate_size=64)


@functools.cache
def cohere2_vision(head_dim: int = 16) -> Zoo:
    """Cohere 2 Vision in small: as Aya Vision."""
    return _shuffled(tf.Cohere2VisionForConditionalGeneration, head_dim, alignment_intermediate_size=64)


def _shuffled(cls: Any, head_dim: int, **own: Any) -> Zoo:
    """Cohere 2 of 4 layers, of which two attend within a window, with positions, and two to everything, without."""
    around = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    tokenizer = tiny_models._tokenizer(image_token="<|IMG_PATCH|>", **around)
    kinds = ["sliding_attention", "full_attention"] * 2
    config = cls.config_class(
        vision_config=_siglip(112),
        text_config={
            "model_type": "cohere2",
            "vocab_size": len(tokenizer),
            **tiny_models._llm(head_dim),
            "layer_types": kinds,
            "sliding_window": 24,
        },
        image_token_id=tokenizer.image_token_id,
        **own,
    )
    images = tf.CLIPImageProcessorPil(size={"height": 112, "width": 112}, crop_size={"height": 112, "width": 112})
    processor = Processor(tokenizer, images, "<|IMG_PATCH|>", tokens_per_image=16)
    model = tiny_models._scaled(cls(config))
    return Zoo(config.model_type, model, processor, "<|IMG_PATCH|>", (tokenizer.image_token_id,))


# -- Mistral3, Pixtral, Idefics3, SmolVLM, LFM2-VL, Kimi-K2.5: text stands between the rows or tiles of an image


@dataclass(frozen=True)
class RowsOfText(Processor):
    """Images whose placeholders are broken up by text: `layout` gives the text of each image from what was made."""

    layout: Callable[[dict[str, Any]], list[str]] = field(default=lambda media: [])
    nested: bool = False  # whether the image processor is given the images of each prompt

    def __call__(self, images: Sequence[Sequence[Image.Image]], texts: Sequence[str]) -> dict[str, Tensor]:
        media: dict[str, Any] = {}
        texts = list(texts)
        if flat := [image for prompt in images for image in prompt]:
            media = self.image_processor(images) if self.nested else self.image_processor(flat, return_tensors="pt")
            media = dict(media)
            pending = iter(self.layout(media))
            for row, prompt in enumerate(images):
                head, *rest = texts[row].split(self.image_token)
                texts[row] = head + "".join(next(pending) + tail for _, tail in zip(prompt, rest, strict=True))
        return {**self.tokenize(texts), **media}


def _pixtral(merge: int) -> tuple[tf.PixtralVisionConfig, RowsOfText]:
    tokenizer = tiny_models._tokenizer("[IMG_BREAK]", "[IMG_END]", image_token="[IMG]")
    vision = tf.PixtralVisionConfig(
        image_size=448,
        patch_size=14,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
    )
    side = 14 * merge

    def layout(media: dict[str, Any]) -> list[str]:
        rows = [["[IMG]" * (int(w) // side)] * (int(h) // side) for h, w in media["image_sizes"]]
        return ["[IMG_BREAK]".join(row) + "[IMG_END]" for row in rows]

    images = tf.models.pixtral.image_processing_pil_pixtral.PixtralImageProcessorPil(
        patch_size={"height": side, "width": side}, size={"longest_edge": 448}
    )
    return vision, RowsOfText(tokenizer, images, "[IMG]", layout=layout)


@functools.cache
def mistral3(head_dim: int = 16) -> Zoo:
    """Mistral Small 3.1 in small: Pixtral of 3 layers at any size, patches merged 2 x 2; Mistral of 4 layers."""
    vision, processor = _pixtral(2)
    tokenizer = processor.tokenizer
    text = tf.MistralConfig(vocab_size=len(tokenizer), **tiny_models._llm(head_dim), sliding_window=None)
    config = tf.Mistral3Config(vision_config=vision, text_config=text, image_token_index=tokenizer.image_token_id)
    model = tiny_models._scaled(tf.Mistral3ForConditionalGeneration(config), seed=1)
    return Zoo("mistral3", model, processor, "[IMG]", (tokenizer.image_token_id,))


@functools.cache
def pixtral(head_dim: int = 16) -> Zoo:
    """Pixtral-12B in small: LLaVA's class with a Pixtral tower, every patch a visual token."""
    vision, processor = _pixtral(1)
    tokenizer = processor.tokenizer
    config = tf.LlavaConfig(
        vision_config=vision,
        text_config=tf.MistralConfig(vocab_size=len(tokenizer), **tiny_models._llm(head_dim), sliding_window=None),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = tiny_models._scaled(tf.LlavaForConditionalGeneration(config), seed=1)
    return Zoo("llava", model, processor, "[IMG]", (tokenizer.image_token_id,))


def cut(images: Sequence[Sequence[Image.Image]], side: int, most: int) -> dict[str, Any]:
    """As Idefics3's processor, which needs torchvision: (prompts, most tiles, 3, side, side), zeros where too many.

    Each picture is cut into at most `most` x `most` tiles with the whole of it behind them, or is one tile.
    """
    prompts: list[list[Any]] = []
    grids = []
    for pictures in images:
        prompts.append([])
        for picture in pictures:
            rows, columns = (min(-(-length // side), most) for length in (picture.height, picture.width))
            split = rows * columns > 1
            grids.append((rows, columns) if split else (0, 0))
            whole = np.asarray(picture.resize((columns * side, rows * side))).astype(np.float32)
            tiles = whole.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
            small = np.asarray(picture.resize((side, side))).astype(np.float32)
            prompts[-1] += [*(tiles if split else ()), small]
    pixels = torch.zeros(len(prompts), max(map(len, prompts)), 3, side, side)
    for row, tiles in enumerate(prompts):
        pixels[row, : len(tiles)] = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2) / 127.5 - 1
    return {"pixel_values": pixels, "grids": grids}


def _tiles(name: str, head_dim: int, most: int) -> Zoo:
    """SigLIP of 3 layers on tiles of 56 px with patches of 7 and 2 x 2 pixel shuffle, i.e. 16 tokens; Llama."""
    names = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = tiny_models._tokenizer("<fake_token_around_image>", "<global-img>", *names, image_token="<image>")
    fake, seen = "<fake_token_around_image>", "<image>" * 16

    def layout(media: dict[str, Any]) -> list[str]:
        texts = []
        for rows, columns in media.pop("grids"):
            cells = [[f"{fake}<row_{r + 1}_col_{c + 1}>{seen}" for c in range(columns)] for r in range(rows)]
            tiles = "".join("".join(row) + "\n" for row in cells)
            texts.append(tiles + "\n" * bool(tiles) + f"{fake}<global-img>{seen}{fake}")
        return texts

    config = getattr(tf, f"{name}Config")(
        vision_config={
            "image_size": 56,
            "patch_size": 7,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
        },
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **tiny_models._llm(head_dim)},
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        pad_token_id=0,
    )
    processor = RowsOfText(tokenizer, functools.partial(cut, side=56, most=most), "<image>", layout=layout, nested=True)
    model = tiny_models._scaled(getattr(tf, f"{name}ForConditionalGeneration")(config), seed=1)
    return Zoo(name.lower(), model, processor, "<image>", (tokenizer.image_token_id,))


@functools.cache
def idefics3(head_dim: int = 16) -> Zoo:
    """Idefics3 in small, each picture cut into up to 2 x 2 tiles and the whole of it behind them."""
    return _tiles("Idefics3", head_dim, 2)


@functools.cache
def smolvlm(head_dim: int = 16) -> Zoo:
    """SmolVLM in small, each picture one tile."""
    return _tiles("SmolVLM", head_dim, 1)


def naflex(images: Sequence[Image.Image], side: int, return_tensors: str) -> dict[str, Any]:
    """As LFM2-VL's processor, which needs torchvision: patches (n, most, side * side * 3), padded behind the last."""
    rows = []
    shapes = []
    for picture in images:
        height, width = (2 * max(round(length / side / 2), 1) for length in (picture.height, picture.width))
        pixels = np.asarray(picture.resize((width * side, height * side))).astype(np.float32) / 127.5 - 1
        cells = pixels.reshape(height, side, width, side, 3).swapaxes(1, 2).reshape(height * width, -1)
        rows.append(torch.from_numpy(cells))
        shapes.append((height, width))
    masks = [torch.ones(len(row), dtype=torch.int32) for row in rows]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    return {
        "pixel_values": pad(rows),
        "pixel_attention_mask": pad(masks),
        "spatial_shapes": torch.tensor(shapes),
    }


@functools.cache
def lfm2_vl(head_dim: int = 16) -> Zoo:
    """LFM2-VL in small: SigLIP 2 at any size, 2 x 2 patches a token; LFM2 of 8 layers, 2, 5 and 7 with attention."""
    tokenizer = tiny_models._tokenizer("<|image_start|>", "<|image_end|>", image_token="<image>")

    def layout(media: dict[str, Any]) -> list[str]:
        counts = (media["spatial_shapes"].prod(-1) // 4).tolist()
        return [f"<|image_start|>{'<image>' * count}<|image_end|>" for count in counts]

    vision = {
        "patch_size": 14,
        "num_patches": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vision_use_head": False,
    }
    text = {
        **tiny_models._llm(head_dim),
        "num_hidden_layers": 8,
        "layer_types": ["full_attention" if layer in (2, 5, 7) else "conv" for layer in range(8)],
        "block_auto_adjust_ff_dim": False,
    }
    config = tf.Lfm2VlConfig(
        vision_config=vision,
        text_config={"model_type": "lfm2", "vocab_size": len(tokenizer), **text},
        image_token_id=tokenizer.image_token_id,
        projector_hidden_size=64,
    )
    images = functools.partial(naflex, side=14)
    processor = RowsOfText(tokenizer, images, "<image>", layout=layout)
    model = tiny_models._scaled(tf.Lfm2VlForConditionalGeneration(config), seed=1)
    return Zoo("lfm2_vl", model, processor, "<image>", (tokenizer.image_token_id,))


def moon_patches(images: Sequence[Image.Image], side: int, return_tensors: str) -> dict[str, Any]:
    """As Kimi K2.5's processor, which needs torchvision: patches (N, 3, side, side) in raster order of each image."""
    made = naflex(images, side, return_tensors)
    rows = [row[mask.bool()] for row, mask in zip(made["pixel_values"], made["pixel_attention_mask"], strict=True)]
    patches = torch.cat(rows).unflatten(1, (side, side, 3)).permute(0, 3, 1, 2).contiguous()
    return {"pixel_values": patches, "image_grid_thw": torch.nn.functional.pad(made["spatial_shapes"], (1, 0), value=1)}


@functools.cache
def kimi_k25(head_dim: int = 16) -> Zoo:
    """Kimi K2.5 in small: MoonViT of 3 layers, 2 x 2 patches a token; DeepSeek-V3 of 4 layers, 3 of them with experts.

    Keys are of `head_dim` plain and half as many rotary channels, values of `head_dim`, cached as latents.
    """
    tokenizer = tiny_models._tokenizer(
        "<|media_begin|>", "<|media_content|>", "<|media_end|>", image_token="<|media_pad|>", video_token="<|video|>"
    )

    def layout(media: dict[str, Any]) -> list[str]:
        counts = (media["image_grid_thw"].prod(-1) // 4).tolist()
        return [f"<|media_begin|>image<|media_content|>{'<|media_pad|>' * count}<|media_end|>" for count in counts]

    vision = {
        "patch_size": 14,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    latent = {"kv_lora_rank": 24, "q_lora_rank": 24, "qk_nope_head_dim": head_dim, "qk_rope_head_dim": head_dim // 2}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "num_mtp_layers": 0}
    text = {
        **tiny_models._llm(head_dim),
        **latent,
        **experts,
        "v_head_dim": head_dim,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    }
    text.pop("head_dim")
    config = tf.Kimi_K25Config(
        vision_config=vision,
        text_config={"model_type": "deepseek_v3", "vocab_size": len(tokenizer), **text},
        projection_hidden_size=32,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        tie_word_embeddings=False,
    )
    images = functools.partial(moon_patches, side=14)
    processor = RowsOfText(tokenizer, images, "<|media_pad|>", layout=layout)
    model = tiny_models._scaled(tf.Kimi_K25ForConditionalGeneration(config), seed=1)
    visual = (tokenizer.image_token_id, tokenizer.video_token_id)
    return Zoo("kimi_k25", model, processor, "<|media_pad|>", visual)


TEXT_BETWEEN = (mistral3, pixtral, idefics3, smolvlm, lfm2_vl, kimi_k25)


# -- Gemma 3, PaliGemma, PaliGemma 2, Gemma 4, Llama 4: masks that the model makes around its language model


@dataclass(frozen=True)
class TypedProcessor(Processor):
    """A processor that says of each token whether it is of an image, or that all are of the prompt."""

    images_are: int = 1  # of ``token_type_ids``; text is 0

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        batch = super().tokenize(texts)
        images = batch["input_ids"] == self.tokenizer.image_token_id
        return {**batch, "token_type_ids": self.images_are * images.long()}


def _siglip_model(
    cls: Any, text: Any, name: str, tokens: int, images_are: int, head_dim: int = 16, **fields: Any
) -> Zoo:
    """A SigLIP tower of 8 x 8 patches before a language model whose layers attend by turns."""
    tokenizer = tiny_models._tokenizer("<boi>", "<eoi>", image_token="<image>")
    vision = tf.SiglipVisionConfig(
        image_size=112,
        patch_size=14,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=4 * head_dim,
        vision_use_head=False,
    )
    config = cls.config_class(
        vision_config=vision,
        text_config=text(vocab_size=len(tokenizer), **tiny_models._llm(head_dim)),
        image_token_index=tokenizer.image_token_id,
        projection_dim=4 * head_dim,  # PaliGemma's, which others leave alone
        **fields,
    )
    images = tf.SiglipImageProcessorPil(size={"height": 112, "width": 112})
    processor = TypedProcessor(tokenizer, images, "<image>", tokens, images_are=images_are)
    return Zoo(name, tiny_models._scaled(cls(config)), processor, "<boi><image><eoi>", (tokenizer.image_token_id,))


@functools.cache
def gemma3(head_dim: int = 16) -> Zoo:
    """Gemma 3 in small: 4 x 4 tokens that see each other; windows of 12, less than an image, in 3 of 4 layers."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    text = functools.partial(tf.Gemma3TextConfig, layer_types=kinds, sliding_window=12, query_pre_attn_scalar=head_dim)
    return _siglip_model(tf.Gemma3ForConditionalGeneration, text, "gemma3", 16, 1, head_dim, mm_tokens_per_image=16)


@functools.cache
def paligemma(head_dim: int = 16) -> Zoo:
    """PaliGemma in small: 8 x 8 tokens and text that all see each other, Gemma of 4 layers."""
    return _siglip_model(tf.PaliGemmaForConditionalGeneration, tf.GemmaConfig, "paligemma", 64, 0, head_dim)


@functools.cache
def paligemma2(head_dim: int = 16) -> Zoo:
    """PaliGemma 2 in small: Gemma 2, whose layers attend within windows by turns, but for the prompt."""
    kinds = ["sliding_attention", "full_attention"] * 2
    rest = {"query_pre_attn_scalar": head_dim, "attn_logit_softcapping": None}  # SDPA leaves that out
    text = functools.partial(tf.Gemma2Config, layer_types=kinds, sliding_window=12, **rest)
    return _siglip_model(tf.PaliGemmaForConditionalGeneration, text, "paligemma2", 64, 0, head_dim)


@dataclass(frozen=True)
class FittingProcessor(Processor):
    """Pictures of any size in squares of patches; the image processor counts their tokens."""

    def _grid_counts(self, media: dict[str, Tensor]) -> list[int]:
        counts: list[int] = media.pop("num_soft_tokens_per_image").tolist()
        return counts


@functools.cache
def gemma4(head_dim: int = 16) -> Zoo:
    """Gemma 4 in small, as its larger models: images whose tokens see each other in layers with a window of 12."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]
    return _gemma4(head_dim, layer_types=kinds, use_bidirectional_attention="vision", hidden_size_per_layer_input=0)


@functools.cache
def gemma4_small(head_dim: int = 16) -> Zoo:
    """Gemma 4 in small, as its smaller models: an input for each layer, and layers that share keys of lower ones."""
    kinds = ["sliding_attention"] * 3 + ["full_attention", "sliding_attention", "full_attention"]
    return _gemma4(
        head_dim, layer_types=kinds, num_hidden_layers=6, num_kv_shared_layers=2, hidden_size_per_layer_input=8
    )


def _gemma4(head_dim: int, layer_types: list[str], **text: Any) -> Zoo:
    tokenizer = tiny_models._tokenizer("<boi>", "<eoi>", image_token="<image>", video_token="<video>")
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": 14,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    config = tf.Gemma4Config(
        text_config={
            **tiny_models._llm(head_dim),
            "vocab_size": len(tokenizer),
            "vocab_size_per_layer_input": len(tokenizer),
            "global_head_dim": 2 * head_dim,
            "sliding_window": 12,
            "layer_types": layer_types,
            **text,
        },
        vision_config=vision,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        audio_token_id=len(tokenizer) + 1,
    )
    images = tf.models.gemma4.image_processing_pil_gemma4.Gemma4ImageProcessorPil(
        patch_size=14, pooling_kernel_size=2, max_soft_tokens=70
    )
    model = tiny_models._scaled(tf.Gemma4ForConditionalGeneration(config), seed=1)
    name = "gemma4_small" if text.get("num_kv_shared_layers") else "gemma4"
    visual = (tokenizer.image_token_id, tokenizer.video_token_id)
    return Zoo(name, model, FittingProcessor(tokenizer, images, "<image>"), "<boi><image><eoi>", visual)


@functools.cache
def llama4(head_dim: int = 16) -> Zoo:
    """Llama 4 in small: tiles of 4 x 4 tokens; chunks of 12, layers without rotation, experts in every second."""
    marks = ("<|image_start|>", "<|image_end|>", "<|image|>", "<|tile_x_separator|>", "<|tile_y_separator|>")
    tokenizer = tiny_models._tokenizer(*marks, image_token="<|patch|>")
    vision = {
        "image_size": 112,
        "patch_size": 14,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "vision_output_dim": 32,
    }
    text = {
        "layer_types": ["chunked_attention", "chunked_attention", "full_attention", "chunked_attention"],
        "no_rope_layers": [1, 1, 0, 1],
        "attention_chunk_size": 12,
        "num_local_experts": 4,
        "moe_layers": [1, 3],
        "intermediate_size_mlp": 96,
    }
    config = tf.Llama4Config(
        vision_config=vision,
        text_config={**tiny_models._llm(head_dim), "vocab_size": len(tokenizer), **text},
        image_token_index=tokenizer.image_token_id,
    )
    images = tf.SiglipImageProcessorPil(size={"height": 112, "width": 112})
    model = tiny_models._scaled(tf.Llama4ForConditionalGeneration(config), seed=1)
    try:
        model(input_ids=torch.tensor([[1, 5]]))
    except AttributeError as error:  # 5.24.0 looks for a field that its own output has not
        pytest.skip(f"transformers {tf.__version__} cannot run Llama 4: {error}")
    processor = Processor(tokenizer, images, "<|patch|>", 16)
    return Zoo(
        "llama4", model, processor, "<|image_start|><|image|><|patch|><|image_end|>", (tokenizer.image_token_id,)
    )


_GEMMA4 = (gemma4, gemma4_small) if hasattr(tf, "Gemma4ForConditionalGeneration") else ()
# foveate refuses Gemma 3, Gemma 4 and Omni's thinker on releases of transformers before 5.17.
EARLIER = Version(tf.__version__) < Version("5.17")
SEEING_LATER = (*(() if EARLIER else (gemma3, *_GEMMA4)), paligemma, paligemma2, llama4)


_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

# -- GLM-4.1V and its kin, PaddleOCR-VL, ERNIE 4.5 VL


@functools.cache
def glm4v(head_dim: int = 16) -> Zoo:
    """GLM-4.1V in small: M-RoPE that turns neighbours in half of a head, a tower that joins patches by convolution."""
    return _glm(tf.Glm4vForConditionalGeneration, head_dim)


@functools.cache
def glm46v(head_dim: int = 16) -> Zoo:
    """GLM-4.6V in small."""
    return _glm(tf.Glm46VForConditionalGeneration, head_dim)


@functools.cache
def glm_ocr(head_dim: int = 16) -> Zoo:
    """GLM-OCR in small: all of each head turns; layers as wide as the merger, which vLLM takes for granted."""
    return _glm(tf.GlmOcrForConditionalGeneration, head_dim, (2, 3, 3), 1.0, intermediate_size=12 * head_dim)


@functools.cache
def glm4v_moe(head_dim: int = 16) -> Zoo:
    """GLM-4.5V in small: 2 of 8 experts and one for all, in all decoder layers but one."""
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
    return _glm(tf.Glm4vMoeForConditionalGeneration, head_dim, routed_scaling_factor=1.5, **experts)


def _glm(cls: Any, head_dim: int, sections: tuple[int, ...] = (1, 1, 2), turning: float = 0.5, **text: Any) -> Zoo:
    """`sections` are of a head of 16, `turning` of it: how many frequencies go with time, row and column."""
    bounds = [f"<|{bound}_of_{seen}|>" for seen in ("image", "video") for bound in ("begin", "end")]
    tokenizer = _tokenizer(*bounds, image_token="<|image|>", video_token="<|video|>")
    begin, end, begin_clip, end_clip = tokenizer.convert_tokens_to_ids(bounds)
    config = cls.config_class(
        text_config={
            "vocab_size": len(tokenizer),
            "rope_parameters": _mrope(head_dim, sections) | {"partial_rotary_factor": turning},
            **_llm(head_dim),
            **text,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": 4 * head_dim,
            "patch_size": 14,
            "image_size": 56,
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        image_start_token_id=begin,
        image_end_token_id=end,
        video_start_token_id=begin_clip,
        video_end_token_id=end_clip,
    )
    # Of the size of four tokens at least, where the family's own asks for 64.
    sizes = {"shortest_edge": 56**2, "longest_edge": 56**2 * 324}
    images = tf.Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2, size=sizes)
    processor = Processor(tokenizer, images, "<|image|>", merge_size=2)
    prompt = "<|begin_of_image|><|image|><|end_of_image|>"
    return Zoo(config.model_type, _scaled(cls(config)), processor, prompt, (tokenizer.image_token_id,))


@functools.cache
def paddleocr_vl(head_dim: int = 16) -> Zoo:
    """PaddleOCR-VL in small: M-RoPE, patches of the tower in raster order."""
    tokenizer = _tokenizer("<s_image>", "<e_image>", image_token="<image>", video_token="<video>")
    config = tf.PaddleOCRVLConfig(
        text_config={"vocab_size": len(tokenizer), "rope_parameters": _mrope(head_dim, (2, 3, 3)), **_llm(head_dim)},
        vision_config={**_TOWER, "image_size": 56, "patch_size": 14},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<s_image>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<e_image>"),
        tie_word_embeddings=False,
    )
    images = tf.PaddleOCRVLImageProcessorPil(size={"shortest_edge": 28**2, "longest_edge": 1296 * 28**2})
    processor = Processor(tokenizer, images, "<image>", merge_size=2)
    model = _scaled(tf.PaddleOCRVLForConditionalGeneration(config))
    return Zoo("paddleocr_vl", model, processor, "<s_image><image><e_image>", (tokenizer.image_token_id,))


@functools.cache
def ernie4_5_vl_moe(head_dim: int = 16) -> Zoo:
    """ERNIE 4.5 VL in small: 2 of 4 experts for text and others, narrower, for what is seen, in all layers but one."""
    begin, end = "<|IMAGE_START|>", "<|IMAGE_END|>"
    tokenizer = _tokenizer(begin, end, image_token="<|IMAGE_PLACEHOLDER|>", video_token="<|VIDEO_PLACEHOLDER|>")
    experts = {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": [32, 16]}
    rope = _mrope(head_dim, (3, 3, 2))
    config = tf.Ernie4_5_VLMoeConfig(
        text_config={"vocab_size": len(tokenizer), "rope_parameters": rope, **experts, **_llm(head_dim)},
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        image_start_token_id=tokenizer.convert_tokens_to_ids(begin),
        image_end_token_id=tokenizer.convert_tokens_to_ids(end),
        tie_word_embeddings=False,
    )
    sizes = {"shortest_edge": 28**2, "longest_edge": 1296 * 28**2}
    images = tf.Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=1, size=sizes)
    processor = Processor(tokenizer, images, "<|IMAGE_PLACEHOLDER|>", merge_size=2)
    model = _scaled(tf.Ernie4_5_VLMoeForConditionalGeneration(config), seed=1)
    visual = (tokenizer.image_token_id, tokenizer.video_token_id)
    return Zoo("ernie4_5_vl_moe", model, processor, f"{begin}<|IMAGE_PLACEHOLDER|>{end}", visual)


def _mrope(head_dim: int, sections: tuple[int, ...]) -> dict[str, Any]:
    """`sections` are of a head of 16: how many of its 8 frequencies go with time, row and column."""
    sections = tuple(n * head_dim // 16 for n in sections)
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}


# -- Qwen2.5-Omni's thinker, Ovis2, MiniCPM-V 4.6, InternVL3.5


@functools.cache
def qwen2_5_omni(head_dim: int = 16) -> Zoo:
    """Qwen2.5-Omni's thinker in small."""
    begin, end, heard = ("<|vision_bos|>", "<|vision_eos|>"), ("<|audio_bos|>", "<|audio_eos|>"), "<|AUDIO|>"
    bounds = {f"{bound[2:-2]}_token": bound for bound in begin + end}
    tokenizer = _tokenizer(image_token="<|IMAGE|>", video_token="<|VIDEO|>", **bounds, audio_token=heard)
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
    audio = {"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32}
    config = tf.Qwen2_5OmniThinkerConfig(
        audio_config={**audio, "output_dim": 4 * head_dim, "n_window": 10},
        vision_config=vision,
        text_config={"vocab_size": len(tokenizer), "rope_parameters": _mrope(head_dim, (2, 3, 3)), **_llm(head_dim)},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        audio_token_index=tokenizer.convert_tokens_to_ids(heard),
        vision_start_token_id=tokenizer.convert_tokens_to_ids(begin[0]),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(begin[1]),
        audio_start_token_id=tokenizer.convert_tokens_to_ids(end[0]),
        audio_end_token_id=tokenizer.convert_tokens_to_ids(end[1]),
    )
    sizes = {"shortest_edge": 28**2, "longest_edge": 1296 * 28**2}
    images = tf.Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2, size=sizes)
    processor = Processor(tokenizer, images, "<|IMAGE|>", merge_size=2)
    model = _scaled(tf.Qwen2_5OmniThinkerForConditionalGeneration(config))
    visual = (tokenizer.image_token_id, tokenizer.video_token_id)
    return Zoo("qwen2_5_omni", model, processor, "<|vision_bos|><|IMAGE|><|vision_eos|>", visual)


@functools.cache
def ovis2(head_dim: int = 16) -> Zoo:
    """Ovis2 in small: tiles of 6 x 6 patches, of which 2 x 2 make a token."""
    indicators = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = _tokenizer(*indicators, image_token="<IMG_ATOM>")
    config = tf.Ovis2Config(
        vision_config={**_TOWER, "image_size": 84, "patch_size": 14, "vocab_size": 29, "hidden_stride": 2},
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **_llm(head_dim)},
        image_token_id=tokenizer.image_token_id,
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(indicators),
        vocab_size=len(tokenizer),
        hidden_size=4 * head_dim,
        tie_word_embeddings=False,
    )
    images = tf.CLIPImageProcessorPil(size={"height": 84, "width": 84}, crop_size={"height": 84, "width": 84})
    processor = Processor(tokenizer, images, "<IMG_ATOM>", tokens_per_image=9)
    model = _scaled(tf.Ovis2ForConditionalGeneration(config), seed=1)
    visual = (tokenizer.image_token_id, *config.visual_indicator_token_ids)
    return Zoo("ovis2", model, processor, "<IMG_START><IMG_ATOM><IMG_GRID><IMG_END>", visual)


class SizedProcessor(Processor):
    """Of a family whose image processor gives the sizes of images, in patches, and what its models do not take."""

    def __call__(self, images: Any, texts: Any) -> dict[str, Any]:
        batch = super().__call__(images, texts)
        return {name: value for name, value in batch.items() if name not in ("grids", "num_patches_per_image")}

    def _grid_counts(self, media: dict[str, Any]) -> list[int]:
        return (media["target_sizes"].prod(-1) // self.merge_size**2).tolist()


@functools.cache
def minicpmv4_6(head_dim: int = 16) -> Zoo:
    """MiniCPM-V 4.6 in small, with 2 x 2 patches to a token; 8 layers, of which 3 and 7 attend, others have a state."""
    tokenizer = _tokenizer("<image>", "</image>", image_token="<|image_pad|>", video_token="<|video_pad|>")
    text = {
        "model_type": "qwen3_5_text",
        "vocab_size": len(tokenizer),
        **_llm(head_dim),
        "num_hidden_layers": 8,
        "layer_types": [*["linear_attention"] * 3, "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": head_dim,
        "linear_value_head_dim": head_dim,
        "rope_parameters": {**_mrope(head_dim, (2, 1, 1)), "partial_rotary_factor": 0.5},
    }
    config = tf.MiniCPMV4_6Config(
        text_config=text,
        vision_config={**_TOWER, "num_hidden_layers": 3, "image_size": 56, "patch_size": 14},
        insert_layer_id=1,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        downsample_mode="4x",  # in the other some releases of transformers take images of one size only
    )
    images = tf.MiniCPMV4_6ImageProcessorPil(slice_mode=False, do_resize=False)
    processor = SizedProcessor(tokenizer, images, "<|image_pad|>", merge_size=2)
    model = _scaled(tf.MiniCPMV4_6ForConditionalGeneration(config))
    visual = (tokenizer.image_token_id, tokenizer.video_token_id)
    return Zoo("minicpmv4_6", model, processor, "<image><|image_pad|></image>", visual)


@functools.cache
def internvl3_5(head_dim: int = 16) -> Zoo:
    """InternVL3.5 in small: InternVL before Qwen3."""
    return _internvl("qwen3", head_dim)


@functools.cache
def internvl3_5_moe(head_dim: int = 16) -> Zoo:
    """InternVL3.5 in small before Qwen3-MoE: 2 of 8 experts for each token."""
    return _internvl("qwen3_moe", head_dim, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32)


def _internvl(text: str, head_dim: int, **options: Any) -> Zoo:
    base = tiny_models.internvl(head_dim)
    config = copy.deepcopy(base.model.config)
    vocabulary = config.text_config.vocab_size
    config.text_config = tf.AutoConfig.for_model(text, vocab_size=vocabulary, **_llm(head_dim), **options)
    return replace(base, name=f"internvl-{text}", model=_scaled(tf.InternVLForConditionalGeneration(config), seed=1))


_OTHERS = {
    "Glm4vForConditionalGeneration": glm4v,
    "Glm46VForConditionalGeneration": glm46v,
    "Glm4vMoeForConditionalGeneration": glm4v_moe,
    "GlmOcrForConditionalGeneration": glm_ocr,
    "PaddleOCRVLForConditionalGeneration": paddleocr_vl,
    "Ernie4_5_VLMoeForConditionalGeneration": ernie4_5_vl_moe,
    "Qwen2_5OmniThinkerForConditionalGeneration": qwen2_5_omni,
    "Ovis2ForConditionalGeneration": ovis2,
    "MiniCPMV4_6ForConditionalGeneration": minicpmv4_6,
    "Qwen3ForCausalLM": internvl3_5,
    "Qwen3MoeForCausalLM": internvl3_5_moe,
}

# -- a class that has no adapter of its own, for the generic one


@functools.cache
def deepseek_vl(head_dim: int = 16) -> Zoo:
    """DeepSeek-VL in small, which the generic adapter serves: SigLIP tower of 56 px, 16 visual tokens; Llama."""
    tokenizer = tiny_models._tokenizer(image_token="<image>")
    config = tf.DeepseekVLConfig(
        vision_config=_siglip(56),
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **tiny_models._llm(head_dim)},
        image_token_id=tokenizer.image_token_id,
    )
    images = tf.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    model = tiny_models._scaled(tf.DeepseekVLForConditionalGeneration(config))
    return Zoo(
        "deepseek_vl", model, Processor(tokenizer, images, "<image>", 16), "<image>", (tokenizer.image_token_id,)
    )


# -- Molmo 2: the picture in small and in crops that overlap, and images that all see each other

_MOLMO_CROP, _MOLMO_MARGIN = 5, 1  # patches along the side of a crop, of which each neighbour has so many, too


def _windows(places: Tensor) -> Tensor:
    """(n, 4): the patches of each 2 x 2 window of `places` (rows, columns), -1 behind the last row and column."""
    rows, columns = places.shape
    places = torch.nn.functional.pad(places, (0, columns % 2, 0, rows % 2), value=-1)
    return places.unfold(0, 2, 2).unfold(1, 2, 2).flatten(0, 1).flatten(1)


def _patches(picture: Image.Image, rows: int, columns: int, side: int) -> Tensor:
    """(rows, columns, side * side * 3)."""
    pixels = np.asarray(picture.resize((columns * side, rows * side))).astype(np.float32) / 127.5 - 1
    cells = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return torch.from_numpy(cells.reshape(rows, columns, -1))


def molmo_crops(images: Sequence[Image.Image], side: int, return_tensors: str) -> dict[str, Any]:
    """As Molmo 2's processor, which needs torchvision: up to 2 x 2 crops behind the whole picture."""
    crop, margin = _MOLMO_CROP, _MOLMO_MARGIN
    step, count = crop - 2 * margin, 0
    pixels, pooling, grids, counts = [], [], [], []
    for picture in images:
        down, across = (min(max(round(length / 56), 1), 2) for length in (picture.height, picture.width))
        shape = (down * step + 2 * margin, across * step + 2 * margin)
        whole, small = _patches(picture, *shape, side), _patches(picture, crop, crop, side)
        places = torch.full(shape, -1)
        made = [small.flatten(0, 1)]
        for row in range(down):
            for column in range(across):
                top, left = row * step, column * step
                made.append(whole[top : top + crop, left : left + crop].flatten(0, 1))
                own = (count + len(made) - 1) * crop**2 + torch.arange(crop**2).view(crop, crop)
                above, before = margin * (row > 0), margin * (column > 0)
                below, behind = crop - margin * (row < down - 1), crop - margin * (column < across - 1)
                places[top + above : top + below, left + before : left + behind] = own[above:below, before:behind]
        overview = count * crop**2 + torch.arange(crop**2).view(crop, crop)
        pooling += [_windows(overview), _windows(places)]
        grids.append([-(-length // 2) for length in (crop, crop, *shape)])
        pixels += made
        counts.append(len(made))
        count += len(made)
    return {
        "pixel_values": torch.stack(pixels),
        "image_token_pooling": torch.cat(pooling),
        "image_grids": torch.tensor(grids),
        "image_num_crops": torch.tensor(counts),
    }


@dataclass(frozen=True)
class MolmoProcessor(RowsOfText):
    """Says of the tokens around the rows of an image that they are of it, too."""

    around: tuple[str, ...] = ()

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        batch = super().tokenize(texts)
        ids = self.tokenizer.convert_tokens_to_ids([self.tokenizer.image_token, *self.around])
        return {**batch, "mm_token_type_ids": torch.isin(batch["input_ids"], torch.tensor(ids)).long()}


@functools.cache
def molmo2(head_dim: int = 16) -> Zoo:
    """Molmo 2 in small: features of two of 3 layers, 2 x 2 patches to a token; a language model like Qwen3's."""
    return _molmo2(head_dim)


@functools.cache
def molmo2_o(head_dim: int = 16) -> Zoo:
    """Molmo 2 in small before a language model like OLMo's: norms behind, positions scaled in some layers."""
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    own = {"qk_norm_type": "olmo", "norm_after": True, "rope_scaling_layers": [1, 3], "rope_parameters": scaled}
    return _molmo2(head_dim, **own)


def _molmo2(head_dim: int, **text: Any) -> Zoo:
    around = ("<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>")
    tokenizer = _tokenizer(*around, image_token="<im_patch>")
    start, low, frame, end, frame_end = tokenizer.convert_tokens_to_ids(list(around[1:]))

    def layout(media: dict[str, Any]) -> list[str]:
        sizes = media["image_grids"].tolist()
        parts = [[("<im_patch>" * w + "<im_col>") * h + "<im_end>" for h, w in (row[:2], row[2:])] for row in sizes]
        return [f"<low_res_im_start>{small}<im_start>{large}" for small, large in parts]

    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    side, pixels = 14, 14 * _MOLMO_CROP
    config = tf.Molmo2Config(
        vision_config={
            **heads,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "image_size": [pixels, pixels],
            "patch_size": side,
        },
        adapter_config={
            **heads,
            "hidden_size": 32,
            "intermediate_size": 64,
            "text_hidden_size": 4 * head_dim,
            "vision_feature_layer": [-1, 0],
        },
        text_config={**_llm(head_dim), "vocab_size": len(tokenizer), "additional_vocab_size": 4, **text},
        image_patch_id=tokenizer.image_token_id,
        image_start_token_id=start,
        low_res_image_start_token_id=low,
        image_end_token_id=end,
        frame_start_token_id=frame,
        frame_end_token_id=frame_end,
    )
    images = functools.partial(molmo_crops, side=side)
    processor = MolmoProcessor(tokenizer, images, "<|image|>", layout=layout, around=around)
    model = _scaled(tf.Molmo2ForConditionalGeneration(config), seed=1)
    return Zoo("molmo2", model, processor, "<|image|>", (tokenizer.image_token_id,))


_MOLMO2 = (molmo2, molmo2_o) if hasattr(tf, "Molmo2ForConditionalGeneration") else ()


# One maker a family, such as ``def llava_next() -> Zoo``, each with a cache around it.
MAKERS: tuple[Callable[[], Zoo], ...] = (
    tiny_models.qwen3_5,
    tiny_models.qwen3_5_moe,
    llava_next,
    llava_onevision,
    llava_next_video,
    vipllava,
    aya_vision,
    cohere2_vision,
    *TEXT_BETWEEN,
    *SEEING_LATER,
    *(make for name, make in _OTHERS.items() if hasattr(tf, name) and not (EARLIER and make is qwen2_5_omni)),
    *_MOLMO2,
    deepseek_vl,
)
