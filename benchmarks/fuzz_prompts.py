"""What the fuzzer draws at random: pictures, prompts, batches of them, masks, methods and budgets."""

from __future__ import annotations

import copy
import functools
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import foveate
import tiny_families
import tiny_models as zoo
from foveate.methods import Where, get_method
from foveate.methods.toolkit.at_layer import AtLayer
from tiny_methods import evidence_scorer

FAMILIES = {make.__name__: make for make in zoo.MAKERS}
# Their layers attend within windows or in chunks, which count what is left, so that blinding layers is no oracle there.
WINDOWED = {
    f"windowed_{kind}": functools.partial(zoo.windowed, kind) for kind in ("mistral", "gemma3", "llama4", "qwen2_5_vl")
}
# Other families whose media can be joined. A mask does not blind layers that carry a state either.
_JOINED = (
    *("qwen3_5", "qwen3_5_moe", "vipllava", "aya_vision", "cohere2_vision", "kimi_k25"),
    *("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "paddleocr_vl", "ernie4_5_vl_moe", "ovis2"),
    *("internvl3_5", "internvl3_5_moe", "deepseek_vl"),
)
MORE = {make.__name__: make for make in tiny_families.MAKERS if make.__name__ in _JOINED}
ALONG = ("input_ids", "attention_mask", "mm_token_type_ids")  # what has a column for each token
VIDEO = tuple(make.__name__ for make in zoo.VIDEO_MAKERS)
WORDS = ("what", "is", "in", "the", "picture?", "a", "red", "square", "on", "blue", "and", "small", "green", "circle.")
SCORED = ("visionselector",)  # needs a trained scorer
FIELDS: dict[str, dict[str, Any]] = {
    "d2pruner": {"debias": False},  # else it needs a calibrated prior
    "modes": {"text": 0.1, "visual": 0.1},  # else it needs calibrated thresholds
    "visipruner": {"fusion": 0.9975, "contribution": 0.3, "shallow": 1},
    "adatp": {"start": 1, "end": 1},
    "evidence": {"scorer": evidence_scorer(64)},  # else it needs a trained one
}
# Hyperparameters that take another path, drawn now and then beside those of FIELDS.
OTHERS: dict[str, list[dict[str, Any]]] = {
    "fastv": [{"layer": 1}, {"layer": 2}, {"layer": 3}],
    "dart": [{"layer": 1}, {"layer": 2}, {"layer": 3}],
    "d2pruner": [{"debias": False, "layer": layer} for layer in (1, 2, 3)],
    "priortr": [{"layer": 1, "rows": "last"}, {"rows": "all"}, {"layer": 2, "rows": "all but last"}],
    "hawk": [{"words": "all"}, {"layer": 2}, {"head_weights": (0.0, 1.0, 2.0, 0.5)}],
    "clse": [{"cutoff": 5.0, "temperature": 2.0}, {"layers": (1, 3)}],
    "v2drop": [{"layers": (2, 3), "shares": (2, 1)}],
    "transprune": [{"balance": 0.0}, {"balance": 1.0, "layers": (3,)}],
    "vlmpruner": [{"pivots": 1, "batch": 1, "own": 0.0}, {"channels": 1, "distance": 0.0}, {"threshold": 0.0}],
    "ivcprune": [{"layer": 1, "coordinates": 0.5}, {"seeds": 1.0, "skip": 0}, {"over": "image"}, {"coordinates": 0.0}],
    "apet": [{"inside": False}, {"basis": 1}, {"features": "projected", "own": 0.5, "start": 99}, {"ratio": 1.0}],
    "otprune": [{"gamma": 0.0}, {"gamma": 1e4}],
    "agilepruner": [{"features": "projected"}, {"erank": 1e-3}, {"highest": 0.0}, {"slope": 9.0, "highest": 2.0}],
    "geoprune": [{"directions": 0}, {"directions": 70, "rounds": 1}, {"features": "encoder"}],
    "litelvlm": [{"referent": 0.0}, {"referent": 1.0, "sign": "plus"}],
    "duet": [{"contextual": 0.0}, {"contextual": 1.0, "width": 1}, {"layers": (1, 2), "shares": (0.9, 0.9)}],
    "flowcut": [{"inside_encoder": False}, {"smoothing": 0.0}, {"blocks": (0,)}],
    "flashvid": [{"selected": 0.0, "similarity": -1.0}, {"selected": 1.0, "neighbours": 1}, {"boundary": 1.0}],
    "divrandom": [{"seed": 5}],
    "modes": [
        {"rule": "ratio", "weights": (0.0, 0.5, 0.9, 1.0)},
        {"rule": "ratio", "weights": (0.9,) * 4, "protected": 0.5, "base": "fastv"},
        {"text": 0.0, "visual": 1e9, "base": "idpruner"},
    ],
    "anchored": [{"base": name} for name in ("idpruner", "fastv", "flashvid", "apet", "vlmpruner", "duet", "hawk")]
    + [{"coordinates": 1.0, "base": "agilepruner"}, {"coordinates": 0.0}, {"base": "modes"}],
    "evidence": [
        {"scorer": evidence_scorer(64), "question": False},
        {"scorer": evidence_scorer(64), "diversity": 0.0},
        {"scorer": evidence_scorer(64), "diversity": 1e4},
    ],
}
NAMES = [name for name in foveate.method_names() if name not in SCORED] + ["guided"]
BEFORE = [name for name in NAMES[:-1] if get_method(name).places() == (Where.BEFORE_LLM,)]
INSIDE = [name for name in NAMES[:-1] if get_method(name).places() == (Where.INSIDE_LLM,)]


def picture(rng: random.Random, least: int = 1, most: int = 200) -> Image.Image:
    """Noise, one colour, a ramp or a chequered board, in any mode that becomes RGB, of any size."""
    height, width = (rng.choice([least, 28, 56, 84, 112, rng.randint(least, most)]) for _ in range(2))
    if max(height, width) > 100 * min(height, width):
        height = width
    made, kind = (
        np.zeros((height, width, 3), np.uint8),
        rng.choice(["noise", "noise", "noise", "plain", "ramp", "board"]),
    )
    if kind == "noise":
        made = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, made.shape, dtype=np.uint8)
    elif kind == "plain":
        made[:] = [rng.randrange(256) for _ in range(3)]
    elif kind == "ramp":
        made[:] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    else:
        made[:] = (np.indices((height, width)).sum(0) // 14 % 2 * 255).astype(np.uint8)[..., None]
    return Image.fromarray(made).convert(rng.choice(["RGB", "RGB", "L", "RGBA", "P", "1"])).convert("RGB")


def text(rng: random.Random, most: int = 12) -> str:
    """Some words."""
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def prompt(z: zoo.Zoo, rng: random.Random, images: int, clips: int = 0, start: bool = True) -> dict[str, Tensor]:
    """One prompt, its pictures and clips before, between and behind its words; sometimes without a word."""
    pieces: list[Any] = [picture(rng) for _ in range(images)] + ["clip"] * clips
    rng.shuffle(pieces)
    if not pieces or rng.random() < 0.9:
        pieces.append(text(rng))
    for _ in range(rng.choice([0, 0, 1, 2])):
        pieces.insert(rng.randrange(len(pieces) + 1), text(rng, 4))
    ids, media = [torch.tensor([[1]])] if start else [], {}
    for piece in pieces:
        if isinstance(piece, str) and piece != "clip":
            part = {"input_ids": z.tokenizer(" " + piece, return_tensors="pt", add_special_tokens=False)["input_ids"]}
        elif piece == "clip":
            frames, rows, columns = rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 3)
            part = dict(zoo.video_inputs(z, frames, rows, columns, rng.getrandbits(20), ""))
            part["input_ids"] = part["input_ids"][:, 1:]
        else:
            part = dict(z.processor([[piece]], [z.image]))
        ids.append(part["input_ids"])
        for key in part.keys() - set(ALONG):
            media.setdefault(key, []).append(part[key])
    return completed(z, torch.cat(ids, 1)) | {key: torch.cat(parts) for key, parts in media.items()}


def completed(z: zoo.Zoo, ids: Tensor) -> dict[str, Tensor]:
    """Token ids with what goes along."""
    out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if z.mrope:
        out["mm_token_type_ids"] = sum((n + 1) * (ids == token).long() for n, token in enumerate(z.visual_ids))
    return out


def batch(rows: Sequence[dict[str, Tensor]], side: str = "left") -> dict[str, Tensor]:
    """Prompts as one padded batch."""
    length = max(row["input_ids"].shape[1] for row in rows)

    def padded(x: Tensor) -> Tensor:
        room = length - x.shape[1]
        return torch.nn.functional.pad(x, (room, 0) if side == "left" else (0, room))

    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: torch.cat([padded(r[key]) if key in ALONG else r[key] for r in rows if key in r]) for key in keys}


@dataclass
class Asked:
    """What `foveate.prune` is asked for."""

    method: Any
    keep: Any
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method}, keep={self.keep!r}, {self.options}"


def draw_only(names: Sequence[str]) -> None:
    """Draw of all methods but these, wherever there are some of a kind."""
    for among in (BEFORE, INSIDE, NAMES):
        among[:] = [name for name in among if name in names] or among


@functools.cache
def small_model(z: zoo.Zoo) -> Any:
    """One that can guide a model: of its size, with other weights."""
    small = copy.deepcopy(z.model)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in small.parameters():
            weights *= 1 + 0.3 * torch.randn(weights.shape, generator=noise)
    return small


def single(rng: random.Random, names: Sequence[str], z: zoo.Zoo) -> Any:
    """A method by name, now and then with hyperparameters of its own."""
    name = rng.choice(names)
    if name == "guided":
        layers, queries = rng.choice([None, 0, 1, (0, 2)]), rng.choice(["last", "text"])
        return foveate.guided(small_model(z), layers=layers, queries=queries, balance=rng.choice([1.0, 0.6]))
    fields = FIELDS.get(name, {})
    if name in OTHERS and rng.random() < 0.5:
        fields = rng.choice(OTHERS[name])
    return foveate.get_method(name, **fields)


def _keep(rng: random.Random) -> Any:
    return rng.choice(
        [0.25, 0.5, 0.1, 0.75, round(rng.uniform(0.01, 0.99), 3), f"{rng.randint(1, 99)}%", 2, 3, 5, 8, 500]
    )


def asked(rng: random.Random, z: zoo.Zoo, names: Sequence[str] = NAMES, plain: bool = False) -> Asked:
    """A method, two of them, a schedule or a composition, with a budget and a scope.

    Args:
        rng: drawn from.
        z: the model.
        names: of methods.
        plain: one method alone.
    """
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["scope"] = rng.choice(["prompt", "frame"])
    if rng.random() < 0.1:
        options["encoder_queries"] = rng.choice([1, 7, 64])
    kind = "single" if plain else rng.choice(["single"] * 5 + ["layer", "pair", "schedule", "compose"])
    before = [name for name in names if name in BEFORE] or BEFORE
    if kind == "single":
        method = single(rng, names, z)
        by_content = rng.random() < (0.4 if method.counts_by_content else 0.1)
        return Asked(method, "auto" if by_content else _keep(rng), options)
    if kind == "layer":
        inner = single(rng, ["divprune", "random", "stride", "idpruner"], z)
        return Asked(AtLayer(inner, rng.randint(0, 3)), _keep(rng), options)
    if kind == "pair":
        first, second = sorted((round(rng.uniform(0.05, 1), 2) for _ in range(2)), reverse=True)
        return Asked([single(rng, before, z), single(rng, INSIDE, z)], [first, second], options)
    if kind == "schedule":
        layers = sorted(rng.sample(range(4), rng.randint(2, 3)))
        keeps = sorted((round(rng.uniform(0.1, 1), 2) for _ in layers), reverse=True)
        inner = rng.choice(["divprune", "random", "stride"])
        return Asked([AtLayer(foveate.get_method(inner), layer) for layer in layers], keeps, options)
    composed = foveate.compose(single(rng, before, z), single(rng, INSIDE, z), ratio=rng.choice([0.5, 0.8]))
    return Asked(composed, round(rng.uniform(0.1, 0.7), 2), options)
