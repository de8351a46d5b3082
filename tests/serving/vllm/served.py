"""All methods that a server can use, as it binds them, and images to try them on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate import FoveateError
from foveate.grouping import TokenGroups
from foveate.importance import LearnedScorer
from foveate.methods import Method, ModelFacts, method_names
from foveate.serving.vllm.batch import Question
from foveate.serving.vllm.bound_methods import BoundMethods
from foveate.tokens import Cue, Grid

WIDTH = 24  # of the embeddings
_ENCODER = 16  # of the encoder's features


def served_methods(width: int = WIDTH) -> dict[str, Method]:
    """Each under its name, with the settings of its paper; those that read a trained scorer with one of noise.

    Some are there with other settings, too, or only so: those whose first stage alone can be served.

    Args:
        width: of the embeddings that they are bound for.
    """
    missing = {cue: f"{cue.not_in_vllm}." for cue in Cue if cue.not_in_vllm}
    facts, found = ModelFacts("tiny", width, 4), {}
    bound = BoundMethods(facts, missing, {})
    logging.disable(logging.WARNING)
    try:
        for name in method_names():
            try:
                found[name] = bound.get(name)
            except FoveateError:  # not for servers
                continue
        for label, settings in {
            "idpruner, scorer": {"scorer": _scorer(width)},
            "visionselector, scorer": {"scorer": _scorer(width)},
            "apet, first stage": {"inside": False},
            "duet, first stage": {"inside": False},
            "agilepruner, erank": {"erank": 90.0},
        }.items():
            name = label.partition(",")[0]
            found[label] = BoundMethods(facts, missing, {name: settings}).get(name)
    finally:
        logging.disable(logging.NOTSET)
    return found


def _scorer(width: int) -> LearnedScorer:
    random = torch.Generator().manual_seed(9)
    return LearnedScorer(*(torch.randn(shape, generator=random) for shape in [(8, width), (8,)] * 2))


def image(
    grid: Grid, seed: int, dtype: torch.dtype = torch.float32, width: int = WIDTH
) -> tuple[Tensor, dict[Cue, Tensor]]:
    """Embeddings (n, width) like an encoder's, smooth over the image and with a few large columns, and their cues."""
    random = torch.Generator().manual_seed(seed)

    def smooth(width: int) -> Tensor:
        places = grid.coordinates().float()
        waves = torch.randn(width, 3, generator=random)
        smooth_part = (places @ waves.T * 0.6 + 6 * torch.rand(width, generator=random)).sin()
        noise = torch.randn(len(grid), width, generator=random)
        return (smooth_part + 0.2 * noise) * (1 + 20 * (torch.rand(width, generator=random) < 0.1))

    cues = {
        Cue.ENCODER_ATTENTION: torch.randn(len(grid), generator=random).mul(2).softmax(0),
        Cue.ENCODER_FEATURES: smooth(_ENCODER).to(dtype),
    }
    return smooth(width).to(dtype), cues


def cues_for(method: Method, images: Sequence[tuple[Tensor, dict[Cue, Tensor]]]) -> dict[Cue, list[Tensor]]:
    """Those that the method needs, as `shorten` wants them."""
    asked = sorted((cue for cue in method.needs if not cue.of_question), key=lambda cue: cue.name)
    return {cue: [cues[cue] for _, cues in images] for cue in asked}


def question_for(
    method: Method, groups: Sequence[TokenGroups], dtype: torch.dtype = torch.float32, width: int = WIDTH
) -> Question | None:
    """A text of seven tokens behind all images, where the method reads one."""
    if not any(cue.of_question for cue in method.needs):
        return None
    text = torch.randn(7, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Question(text, [[0] * len(one.spans) for one in groups])
