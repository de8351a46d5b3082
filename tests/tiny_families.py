"""Tiny random models of the families that `tests/models/test_families.py` runs, made like those of `tiny_models`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from torch import Tensor

import tiny_models
from tiny_models import Processor, Zoo

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
def llava_next_video(head_dim: int = 16) -> Zoo:
    """LLaVA-NeXT-Video in small: LLaVA-NeXT, and clips of 2 x 2 tokens a frame."""
    tokenizer = tiny_models._tokenizer(image_token="<image>", video_token="<video>")
    config = tf.LlavaNextVideoConfig(
        vision_config=_clip(56),
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
    tokenizer = tiny_models._tokenizer(image_token="<|IMG_PATCH|>")
    kinds = ["sliding_attention", "full_attention"] * 2
    config = cls.config_class(
        vision_config=_siglip(112),
        text_config={
            "model_type": "cohere2",
            "vocab_size": len(tokenizer),
            **tiny_models._llm(head_dim),
            "layer_types": kinds,
            "sliding_window": 64,
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


SEEING_LATER = (gemma3, paligemma, paligemma2)


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
)
