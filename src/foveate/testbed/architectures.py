"""The two models of the testbed before training: their sizes, their first weights, their tokenizer and processors."""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from .lexicon import vocabulary
from .procedural import CELL
from .questions import LARGEST, STEP
from .sources import TestbedError

MODELS = ("llava", "qwen2.5-vl")
_SPREAD = 0.3  # standard deviation of the first word embeddings
WIDTH = 128  # of both towers and both language models
PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
IMAGE = "<image>"
WORDS_IN_ANSWER = 10  # tokens, at most, the end included
START, END, PICTURE, CLIP = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
_TEMPLATE = """{{ bos_token }}{% for message in messages %}\
{% set parts = [{"type": "text", "text": message.content}] if message.content is string else message.content %}\
{% for part in parts %}\
{% if part.type == "image" %}IMAGE{% elif part.type == "video" %}VIDEO{% elif message.role == "assistant" %}\
{{ part.text }}{% else %}{{ part.text | lower }}{% endif %}{% endfor %}\
{% if message.role == "assistant" %}{{ eos_token }}{% endif %}{% endfor %}"""
MEAN, DEVIATION = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)  # of pixels, as CLIP has them


def tokenizer(model: str) -> tf.PreTrainedTokenizerFast:
    """A tokenizer of words; capitals, digits and coordinates such as ``<12>`` are words of their own."""
    special = [PAD, BOS, EOS, UNKNOWN] + ([IMAGE] if model == "llava" else [START, END, PICTURE, CLIP])
    coordinates = [f"<{side}>" for side in range(0, LARGEST + 1, STEP)]
    words = [*special, *vocabulary(), *coordinates]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[A-Z0-9?.,]"), "isolated")]
    )
    backend.add_tokens(coordinates)
    named = {"image_token": IMAGE} if model == "llava" else {"image_token": PICTURE, "video_token": CLIP}
    image, clip = (IMAGE, CLIP) if model == "llava" else (f"{START}{PICTURE}{END}", f"{START}{CLIP}{END}")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=_TEMPLATE.replace("IMAGE", image).replace("VIDEO", clip),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        extra_special_tokens=named | ({} if model == "llava" else {"start_token": START, "end_token": END}),
    )


def image_processor(model: str) -> Any:
    """What makes pixels of pictures: LLaVA's pads them at the right and bottom, Qwen2.5-VL's takes them as they are."""
    pixels = {"image_mean": list(MEAN), "image_std": list(DEVIATION)}
    if model == "llava":
        side = {"height": LARGEST, "width": LARGEST}
        return tf.CLIPImageProcessorPil(
            **pixels, do_resize=False, do_center_crop=False, do_pad=True, pad_size=side, size=side, crop_size=side
        )
    sizes = {"shortest_edge": CELL**2, "longest_edge": LARGEST**2}
    return tf.Qwen2VLImageProcessorPil(**pixels, patch_size=CELL // 2, merge_size=2, temporal_patch_size=2, size=sizes)


def build(model: str, seed: int) -> Any:
    """A model with first weights that depend on the seed alone, float32.

    Raises:
        TestbedError: for an unknown name.
    """
    if model not in MODELS:
        raise TestbedError(f"model {model!r} must be one of {', '.join(MODELS)}.")
    words = tokenizer(model)
    text = {
        "vocab_size": -(-len(words) // 32) * 32,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    torch.manual_seed(seed)
    made = _llava(words, text) if model == "llava" else _qwen(words, text)
    made.generation_config.update(
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id
    )
    with torch.no_grad():
        _first_weights(made, words)
    return made


def _llava(words: Any, text: dict[str, Any]) -> Any:
    vision = tf.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=LARGEST,
        patch_size=CELL,
        projection_dim=WIDTH,
        hidden_act="gelu",
    )
    config: dict[str, Any] = {
        "vision_config": vision,
        "text_config": tf.LlamaConfig(**text, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        "image_token_id": words.image_token_id,
        "vision_feature_layer": -1,
        "image_seq_length": (LARGEST // CELL) ** 2,
        "tie_word_embeddings": True,
    }
    return tf.LlavaForConditionalGeneration(tf.LlavaConfig(**config))


def _qwen(words: Any, text: dict[str, Any]) -> Any:
    vision = {
        "depth": 6,
        "hidden_size": 96,
        "intermediate_size": 256,
        "out_hidden_size": WIDTH,
        "num_heads": 3,
        "patch_size": CELL // 2,
        "fullatt_block_indexes": [2, 5],
        "window_size": 4 * CELL,
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    ids = {
        "image_token_id": words.image_token_id,
        "video_token_id": words.video_token_id,
        "vision_start_token_id": words.start_token_id,
        "vision_end_token_id": words.end_token_id,
    }
    config = tf.Qwen2_5_VLConfig(
        vision_config=vision, text_config={**text, "rope_parameters": rope}, tie_word_embeddings=True, **ids
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config)


def _first_weights(model: Any, words: Any) -> None:
    """Weights from which small transformers learn fast: keys like queries, outputs like transposed values."""
    text = model.model.language_model
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "embed" not in name:
            last = name.endswith(("o_proj.weight", "down_proj.weight", "fc2.weight", "out_proj.weight"))
            nn.init.normal_(weight, std=0.02 if last else 0.8 / math.sqrt(weight.shape[1]))
    nn.init.normal_(text.embed_tokens.weight, std=_SPREAD)
    text.norm.weight.fill_(_SPREAD)  # else the first guesses are far too sure, embeddings being tied
    coordinates = torch.arange(LARGEST // STEP + 1)
    first = words.convert_tokens_to_ids("<0>")
    near = waves(coordinates, width=WIDTH, lowest=0.08, highest=2.5)
    text.embed_tokens.weight[first + coordinates] = _SPREAD * math.sqrt(2) * near
    for layer in text.layers:
        attention = layer.self_attn
        _alike(attention.q_proj.weight, attention.k_proj.weight)
        attention.o_proj.weight.copy_(0.35 * attention.v_proj.weight.T)
    if hasattr(model.model, "vision_tower"):
        tower = model.model.vision_tower
        for layer in tower.encoder.layers:
            _alike(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight)
        positions = tower.embeddings.position_embedding.weight
        positions[0] = 0
        side = torch.arange(LARGEST // CELL)
        rows, columns = torch.meshgrid(side, side, indexing="ij")
        positions[1:] = 0.5 * waves(columns.flatten(), rows.flatten(), width=WIDTH, lowest=0.15, highest=1.5)


def _alike(queries: Tensor, keys: Tensor) -> None:
    nn.init.normal_(queries, std=1.15 / math.sqrt(queries.shape[1]))
    keys.copy_(queries + 0.02 * torch.randn_like(queries))


def waves(*places: Tensor, width: int, lowest: float, highest: float) -> Tensor:
    """Sines and cosines of one or several coordinates (n,), turned at random: (n, width), so that near is alike."""
    frequencies = torch.logspace(math.log10(lowest), math.log10(highest), width // (2 * len(places)))
    angles = [place.float()[:, None] * frequencies for place in places]
    found = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return found @ torch.linalg.qr(torch.randn(width, width))[0]
