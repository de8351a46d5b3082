"""Tiny random checkpoints on disk, for vLLM: the models of the zoo with wider heads and transformers' own processors.

The Qwen and InternVL processors hold one for video, which needs torchvision: build these in the environment of
``make test-vllm``.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import transformers as tf
from safetensors.torch import load_file, save_file

import tiny_families
import tiny_models
from tiny_models import Zoo

from . import mrope_processors, processors

NAMES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
_HEAD_DIM = 64  # vLLM's attention on CPUs has kernels from 32 on; real models have 64 or 128
_WITHIN = ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model")  # in checkpoints a model within a model
_PROCESSORS = processors.MAKERS | mrope_processors.MAKERS
# Settings of published checkpoints that vLLM reads and transformers, where they are always so, does not.
_ASKED = {
    "qwen3_vl_moe": {"norm_topk_prob": True},
    "glm4v_moe": {"use_qk_norm": False},
    "qwen2_5_omni": {"tie_word_embeddings": False},
}


def saved(name: str, folder: Path) -> Path:
    """Where the checkpoint of the tiny model `name` lies below `folder`; built on the first call."""
    path = folder / name
    if not path.exists():
        zoo = maker(name)(_HEAD_DIM)
        unfinished = folder / f".{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        _processor(name, zoo).save_pretrained(unfinished)
        for setting, value in _ASKED.get(name, {}).items():
            setattr(zoo.model.config.text_config, setting, value)
        zoo.model.save_pretrained(unfinished)
        if name == "qwen3_vl_moe":
            _turn_experts(unfinished / "model.safetensors")
        if name == "paddleocr_vl":
            _name_without_model(unfinished / "model.safetensors")
        if name == "qwen2_5_omni":
            _put_thinker_into_omni(zoo, unfinished)
        if zoo.model.config.vision_config.model_type in _WITHIN:
            _name_as_on_the_hub(unfinished / "model.safetensors")
        unfinished.rename(path)
    return path


def _name_as_on_the_hub(weights: Path) -> None:
    """Give the weights of a CLIP or SigLIP tower the names of published checkpoints, the only ones that vLLM knows.

    transformers 5 reads both, and writes shorter ones.
    """
    renamed = {
        name.replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in load_file(weights).items()
    }
    save_file(renamed, weights, metadata={"format": "pt"})


def _turn_experts(weights: Path) -> None:
    """Write experts as in published checkpoints, inputs before outputs; transformers reads both."""
    turned = {
        name: weight.transpose(1, 2).contiguous() if ".experts." in name else weight
        for name, weight in load_file(weights).items()
    }
    save_file(turned, weights, metadata={"format": "pt"})


def _name_without_model(weights: Path) -> None:
    """Give the weights of PaddleOCR-VL the names of published checkpoints; transformers reads both."""
    names = {"model.visual.": "visual.", "model.projector.": "mlp_AR.", "model.language_model.": "model."}
    renamed = {}
    for name, weight in load_file(weights).items():
        own = next((own for own in names if name.startswith(own)), "")
        renamed[names.get(own, "") + name.removeprefix(own)] = weight
    save_file(renamed, weights, metadata={"format": "pt"})


def _put_thinker_into_omni(zoo: Zoo, folder: Path) -> None:
    """Make the checkpoint one of the whole model, as published, though without what talks."""
    whole = tf.Qwen2_5OmniConfig(thinker_config=zoo.model.config.to_dict(), enable_audio_output=False)
    whole.architectures, whole.dtype = ["Qwen2_5OmniModel"], "float32"
    whole.save_pretrained(folder)
    weights = {f"thinker.{name}": weight for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def maker(name: str) -> Callable[[int], Zoo]:
    """What makes the tiny model of this name, of a width of its heads."""
    if name == "llava_next_video":  # vLLM divides the side of an image by the square of a patch's, which must not be 0
        return functools.partial(tiny_families.llava_next_video, patch=7)
    if name == "llama4":  # its processor puts the other marks around the one that stands for an image
        return lambda head_dim: dataclasses.replace(tiny_families.llama4(head_dim), image="<|image|>")
    found: Callable[[int], Zoo] = getattr(tiny_models, name, None) or getattr(tiny_families, name)
    return found


def _processor(name: str, zoo: Zoo) -> tf.ProcessorMixin:
    tokenizer, images = zoo.tokenizer, zoo.processor.image_processor
    # InternVL's puts <img> and </img> around its placeholder by itself.
    image = zoo.processor.image_token if zoo.name == "internvl" else zoo.image
    template = (
        "<s>{% for message in messages %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}{% endfor %}"
    )
    if name in _PROCESSORS:
        return _PROCESSORS[name](zoo, template)
    match name:
        case "llava":
            return tf.LlavaProcessor(
                images,
                tokenizer,
                patch_size=14,
                vision_feature_select_strategy="default",
                num_additional_image_tokens=1,  # CLS
                chat_template=template,
            )
        case "qwen2_vl":
            return tf.Qwen2VLProcessor(images, tokenizer, tf.Qwen2VLVideoProcessor(), chat_template=template)
        case "qwen2_5_vl":
            return tf.Qwen2_5_VLProcessor(images, tokenizer, tf.Qwen2VLVideoProcessor(), chat_template=template)
        case "qwen3_vl":
            # vLLM normalises on the device, clips with the numbers of images.
            video = tf.Qwen3VLVideoProcessor(image_mean=images.image_mean, image_std=images.image_std)
            return tf.Qwen3VLProcessor(images, tokenizer, video, chat_template=template)
        case "internvl":
            tiles = tf.GotOcr2ImageProcessorPil(size=dict(images.size), crop_to_patches=True, max_patches=4)
            video = tf.InternVLVideoProcessor(size=dict(images.size))
            return tf.InternVLProcessor(tiles, tokenizer, video, image_seq_length=16, chat_template=template)
    raise ValueError(f"no processor for {zoo.name}")
