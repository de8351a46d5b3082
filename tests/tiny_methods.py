"""What each method needs to run on tiny models, where nothing was trained or measured and layers are few.

All tests of every method read it here: who adds a method that needs more than its defaults adds a line.
"""

from __future__ import annotations

from typing import Any

import torch

from foveate.importance import AttentionPrior, LearnedScorer
from foveate.importance.evidence_scorer import EvidenceScorer, EvidenceShape
from tiny_models import Zoo

CLIPS_ONLY = {"evs"}  # compare the frames of clips
WHOLE_GRIDS = {"avgpool", "clse", "eadp", "evs", "pixelprune"}  # cannot follow a method that left holes
SHORT_IMAGES = {"pixelprune"}  # leave patches out before the encoder, which must take any number of them
EXPERTS = {"fastmmoe", "modes"}  # act on experts of the language model
EDITS = {"visipruner"}  # change attention in layers that some models do not have


def settings(name: str, width: int, layers: int) -> dict[str, Any]:
    """The hyperparameters of a method beside its defaults, for visual tokens of a width and a number of LLM layers."""
    if name == "visionselector":
        return {"scorer": selector(width)}
    if name == "evidence":
        return {"scorer": evidence_scorer(width)}
    seeded = torch.Generator().manual_seed(1)
    return {
        "d2pruner": {"prior": AttentionPrior(torch.rand(4, 4, generator=seeded), 2, "toy", 1, "p")},
        "modes": {"text": 0.1, "visual": 0.1},
        "adatp": {"start": layers // 3, "end": layers // 3},
        "flashvid": {"layer": 2 * layers // 3},
    }.get(name, {})


def settings_on(z: Zoo, name: str) -> dict[str, Any]:
    """The hyperparameters of a method beside its defaults for one of the tiny models."""
    text = z.model.config.get_text_config()
    return settings(name, text.hidden_size, text.num_hidden_layers)


def runs_on(z: Zoo, name: str, clip: bool = False) -> bool:
    """Whether a method runs on a model of `tiny_models`, on images or on a clip; else it refuses."""
    if name in CLIPS_ONLY:
        return clip
    if name in EDITS:
        return not z.name.startswith("qwen3_5")
    if name in EXPERTS:
        return z.name.endswith("moe")
    return name not in SHORT_IMAGES or z.mrope


def selector(width: int) -> LearnedScorer:
    """An untrained scorer of VisionSelector."""
    generator = torch.Generator().manual_seed(1)  # the same at every call, whatever else is drawn
    return LearnedScorer(*(torch.randn(size, generator=generator) for size in ((4, width), (4,), (4, width), (4,))))


def evidence_scorer(hidden_size: int) -> EvidenceScorer:
    """An evidence scorer whose evidence is not the same everywhere."""
    scorer = EvidenceScorer(EvidenceShape(hidden_size, width=8, layers=1, heads=2)).requires_grad_(False)
    scorer.out.weight.copy_(torch.linspace(-2, 2, 8)[None])
    return scorer
