"""Tiny random models of any image-text class, made from its configuration alone: sizes are shrunk by their names.

Unlike the makers of `tiny_models` nothing here knows a family. What cannot be made so raises `NotTiny`, with a reason.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers as tf
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

VOCABULARY = 199
FIRST_SPECIAL = 150  # of the ids to which placeholders and the like are moved
TEXT = 9
_MOST = 30_000_000  # parameters of what may be built
_PATCH, _SIDE = 4, 8  # pixels of a patch, patches of a side
_EMBEDDING = ("embed", "norm", "bias")

# What a size becomes, by the first expression that its name holds; those that none fits stay.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"^(vocab_size|.*_vocab_size|vocab_size_.*|num_embeddings)$", VOCABULARY),
    (r"num_key_value_heads|num_kv_heads|n_kv_heads", 2),
    (r"(num|n).*heads?$|num_head|attention_heads|n_head", 2),
    (r"^(global_)?head_dim$|qk_nope_head_dim|v_head_dim|qk_rope_head_dim|head_size", 16),
    (r"(q|kv)_lora_rank", 16),
    (r"num_experts_per_tok|num_experts_per_token|top_k|moe_topk|moe_k$|num_selected_experts|topk_experts", 2),
    (r"^(n_group|topk_group|n_shared_experts|moe_num_shared_experts|num_shared_experts|first_k_dense_replace)$", 1),
    (r"n_routed_experts|num_experts|num_local_experts|moe_num_experts|n_experts", 4),
    (r"intermediate|ffn_dim|mlp_dim|ff_dim|ffn_hidden", 48),
    (r"^(num_hidden_layers|n_layer|n_layers|num_layers|decoder_layers|encoder_layers|layers|depth)$", 4),
    (r"num_.*layers$|.*_depth$|.*_layers$", 2),
    (r"^image_size$|^img_size$", _PATCH * _SIDE),
    (r"^patch_size$", _PATCH),
    (r"^(hidden_size|embed_dim|d_model|n_embd|out_hidden_size|projection_dim|width|hidden_dim|embedding_size|"
     r"projection_size|encoder_hidden_size|mm_hidden_size|output_dim|out_dim|projector_hidden_size|"
     r"vision_hidden_size|projection_hidden_size|output_hidden_size|dim|vision_output_dim|text_hidden_size)$", 32),
)  # fmt: skip
# What of a configuration is replaced whole: sizes that depend on each other, maps over layers, ids by name.
_REPLACED: dict[str, Any] = {
    "mrope_section": [2, 3, 3],
    "per_layer_config": {},
    "projector_patch_to_query_dict": {_SIDE**2: 16},
    "patch_to_query_dict": {_SIDE**2: 16},
    "mm_tokens_per_image": 16,
    "image_seq_length": _SIDE**2,
    "vision_feature_layers": [-1, -2],
    "image_grid_pinpoints": [[2 * _PATCH * _SIDE] * 2],
    "deepstack_visual_indexes": [0, 1],
    "vocabulary_map": {"<image>": FIRST_SPECIAL + 20, "IMGIMGA": 100, "<|extra_0|>": 101},
    "activation_sparsity_pattern": 0.0,
}
_FIXED = {"max_position_embeddings", "sliding_window", "temporal_patch_size", "spatial_merge_size"}


class NotTiny(Exception):
    """Why a class cannot be made tiny, or fed, without knowing more of it than its configuration."""


def classes() -> Iterator[tuple[str, str]]:
    """The model type and class name of every image-text class that the installed transformers lists."""
    yield from CLASSES.items()


def build(model_type: str) -> Any:
    """A tiny random model of a class, in eval mode.

    Raises:
        NotTiny: where its configuration gives no such model.
    """
    cls: Any = getattr(tf, CLASSES[model_type], None)
    if cls is None:
        raise NotTiny("transformers lists the class but does not export it")
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            config = cls.config_class.from_dict(shrunk(cls.config_class().to_dict()))
            with torch.device("meta"):
                size = sum(one.numel() for one in cls(config).parameters())
        except Exception as error:  # configurations and models raise nearly everything
            raise NotTiny("no small model is built from its configuration alone") from error
        if size > _MOST:
            raise NotTiny("no small model is built from its configuration alone")
        model = cls(config).eval()
        for name, weight in model.named_parameters():  # such that what is dropped shows in the logits
            if weight.ndim > 1 and not any(one in name for one in _EMBEDDING):
                weight.data.normal_(std=0.15)
    return model


def build_hollow(model_type: str) -> Any:
    """A model of a class in its usual size, without weights: its modules and configuration can be looked at.

    Raises:
        NotTiny: where its default configuration builds none.
    """
    cls: Any = getattr(tf, CLASSES[model_type])
    try:
        with torch.device("meta"):
            return cls(cls.config_class())
    except Exception as error:  # configurations and models raise nearly everything
        raise NotTiny("its default configuration builds no model") from error


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as data, with small sizes and few layers, and special tokens inside a small vocabulary."""
    special: dict[int, int] = {}
    return {name: _shrunk(name, value, special) for name, value in config.items()}


def _shrunk(name: str, value: Any, special: dict[int, int]) -> Any:
    if name in _REPLACED:
        return _REPLACED[name]
    if name == "intermediate_size" and isinstance(value, (list, tuple)):
        return 48
    if isinstance(value, Mapping):
        made = {key: _shrunk(str(key), one, special) for key, one in value.items()}
        if "sliding_attention" in (made.get("layer_types") or ()) and not made.get("sliding_window"):
            made["sliding_window"] = 64
        return made
    if name in _FIXED or isinstance(value, bool) or value is None:
        return value
    if name in ("layer_types", "mlp_layer_types", "indexer_types") and isinstance(value, (list, tuple)):
        kinds = list(dict.fromkeys(value))
        return (kinds * 4)[:4]
    if re.search(r"token_(id|index)$", name) and isinstance(value, int) and value >= 0:
        return special.setdefault(value, FIRST_SPECIAL + len(special))
    if isinstance(value, int):
        return next((small for pattern, small in _SIZES if re.search(pattern, name)), value)
    return value


def feed(model: Any) -> dict[str, Tensor]:
    """Inputs of one prompt with two images, as far as they can be found by trying.

    Raises:
        NotTiny: where the class has no placeholder, or takes none of the pixels that are tried.
    """
    config = model.config
    token = next((getattr(config, name) for name in ("image_token_id", "image_token_index") if
                  isinstance(getattr(config, name, None), int)), None)  # fmt: skip
    if token is None:
        raise NotTiny("its configuration names no image placeholder")
    names = {*inspect.signature(model.forward).parameters, *inspect.signature(model.base_model.forward).parameters}
    errors: list[str] = []
    for candidate in _media(model):
        media = {name: value for name, value in candidate.items() if name in names}
        try:
            with torch.no_grad():
                inputs = _prompt(model, token, _tokens(model, media), media)
                model(**inputs, use_cache=False)
        except Exception as error:  # models raise nearly everything on pixels of a shape that they do not know
            errors.append(_first_line(error))
            continue
        return inputs
    raise NotTiny("it takes none of the pictures that are tried") from ValueError("; ".join(dict.fromkeys(errors)))


def _media(model: Any) -> Iterator[dict[str, Tensor]]:
    """Two images in the forms that processors give them; what a model does not take is left out."""
    vision = getattr(model.config, "vision_config", None)
    sides = [size for size in (getattr(vision, "image_size", None), _PATCH * _SIDE) if isinstance(size, int)]
    generator = torch.Generator().manual_seed(1)
    for side in dict.fromkeys(sides):
        pixels = torch.randn(2, 3, side, side, generator=generator)
        sizes = torch.tensor([[side, side]] * 2)
        yield {"pixel_values": pixels, "high_res_pixel_values": pixels, "pixel_values_images": pixels}
        yield {"pixel_values": pixels, "image_sizes": sizes}
        yield {"pixel_values": pixels[None], "pixel_attention_mask": torch.ones(1, 2, side, side).bool()}
        yield {"pixel_values": pixels[:, None]}
        yield {"pixel_values": pixels[:, None].expand(-1, 5, -1, -1, -1), "image_sizes": 2 * sizes}
    for temporal in dict.fromkeys((getattr(vision, "temporal_patch_size", 1), 1, 2)):
        grid = torch.tensor([[1, _SIDE, _SIDE]] * 2)
        rows = torch.randn(2 * _SIDE**2, 3 * _PATCH**2 * (temporal or 1), generator=generator)
        for patches in (rows, rows.view(2 * _SIDE**2, -1, _PATCH, _PATCH)):
            yield {"pixel_values": patches, "image_grid_thw": grid, "image_merge_sizes": torch.ones(2).long()}


def _tokens(model: Any, media: Mapping[str, Tensor]) -> int:
    """How many visual tokens come out for one of the two images."""
    holder = model if hasattr(model, "get_image_features") else model.model
    allowed = set(inspect.signature(holder.get_image_features).parameters)
    output = holder.get_image_features(**{name: value for name, value in media.items() if name in allowed})
    features = getattr(output, "pooler_output", output)
    if isinstance(features, (list, tuple)):
        features = torch.cat([one.reshape(-1, one.shape[-1]) for one in features])
    return int(features.reshape(-1, features.shape[-1]).shape[0]) // 2


def _prompt(model: Any, token: int, count: int, media: Mapping[str, Tensor]) -> dict[str, Tensor]:
    words = torch.arange(20, 20 + TEXT)
    ids = torch.cat([words[:2], torch.full((count,), token), words[2:4], torch.full((count,), token), words[4:]])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inspect.signature(model.forward).parameters:
            inputs[name] = (ids == token).long()
    return inputs


def _first_line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:160]
