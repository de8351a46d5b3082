"""Short hashes of what answers depend on besides settings: the question, the model, and what a method learned."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..data.samples import Sample
from ..errors import FoveateError
from ..methods import Method
from ..methods.toolkit.base import ModelFacts

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
_BEGINNING = 64  # elements that are hashed as they are


def hash_weights(model: nn.Module) -> str:
    """A short hash of a model's weights: of their shapes, their beginnings and the sums of all their bits."""
    return _hash_tensors(model.named_parameters())


def hash_learned(methods: Sequence[Method], facts: ModelFacts) -> dict[str, str]:
    """Of each method that has them on this model, a short hash of its scorer or attention prior."""
    found = {}
    for method in methods:
        try:
            tensors = list(_tensors(method.bind(facts)))
        except FoveateError:  # a method that cannot run here is reported where it is run
            continue
        if tensors:
            found[method.name] = _hash_tensors(tensors)
    return found


def question_keys(samples: Sequence[Sample]) -> list[str]:
    """Of each question a short hash of all that its answers depend on: its text, and what its pictures show.

    Accepted answers, families and the way of judging are none of that: they may change, and the answers stay.
    """
    content_hashes: dict[Path | int, str] = {}
    repeats: Counter[str] = Counter()
    keys = []
    for sample in samples:
        pictures = []
        for one in sample.pictures:
            name = one if isinstance(one, Path) else id(one)
            if name not in content_hashes:
                content_hashes[name] = _content(one)
            pictures.append(content_hashes[name])
        facts = (sample.question, sample.video, pictures, sample.boxes, sample.metric == "iou")
        key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
        repeats[key] += 1
        keys.append(key if repeats[key] == 1 else f"{key}-{repeats[key]}")  # the same question once more
    return keys


def hash_processor(processor: Any) -> str:
    """A short hash of how a processor makes inputs: its image processor's settings and its chat template."""
    images: Any = getattr(processor, "image_processor", None)
    settings = images.to_dict() if hasattr(images, "to_dict") else {}
    facts = json.dumps([settings, getattr(processor, "chat_template", None)], default=str, sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _content(picture: Path | Image.Image) -> str:
    if isinstance(picture, Path):
        return hashlib.sha256(picture.read_bytes()).hexdigest()
    return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).hexdigest()


def _hash_tensors(tensors: Any) -> str:
    hashed = hashlib.sha256()
    for name, tensor in tensors:
        bits = tensor.detach().flatten().view(_INTEGERS[tensor.element_size()])
        hashed.update(f"{name} {tuple(tensor.shape)} {int(bits.sum(dtype=torch.int64))}".encode())
        hashed.update(bits[:_BEGINNING].cpu().numpy().tobytes())
    return hashed.hexdigest()[:16]


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Those that a dataclass was made with, however deep, and those of modules, with their names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{key}", tensor) for key, tensor in value.state_dict().items())
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.init:
                yield from _tensors(getattr(value, field.name), f"{name}.{field.name}")
