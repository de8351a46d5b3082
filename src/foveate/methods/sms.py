"""SMS-like, a reading of Sparsity Meets Similarity: cut by similarity to the CLS token, then by attention of the text.

Before the LLM the paper sorts the similarities of the patches to the CLS token and cuts where the curve bends, at
another count for each image. After the first layers of the LLM it cuts once more, by the interaction with the text:
here the attention that the text behind the image pays to a token in the layer below, mean over heads and text.

Budget: with ``keep="auto"`` both cuts are at the knees of their curves (see `knee`). With another budget the highest
values are kept, and `keep` is the average over the layers; without the cut inside the LLM it is what the first keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import MethodError
from ..selection.similarity import snap_near_one
from ..tokens import Cue, VisualTokens
from .toolkit.base import Method, Provenance, Where
from .toolkit.constraints import Layer
from .toolkit.registry import register_method
from .toolkit.text_relevance import attention_of_text
from .toolkit.top_k import TopK
from .toolkit.two_stage import TwoStageMethod

_BEND = 1e-9  # how far below its chord a curve must lie, the chord being from (0, 1) to (1, 0)


@register_method("sms")
@dataclass(frozen=True)
class Sms(TwoStageMethod, TopK):
    """The tokens most similar to what stands for their image, and of these those that the text attends to most.

    Args:
        inside: whether the second cut, inside the LLM, follows. Without it the method runs in vLLM, too, but for
            ``keep="auto"``.
        similarity: ``"attention"`` of the CLS token to a patch (the adapter's encoder attention where there is none),
            or ``"mean"``: the cosine of a patch's feature before the projector to the mean of its image or frame.
        layer: zero-based layer whose input the second cut shortens.
        ratio: with a given budget, what the second cut keeps of what the first one left, in (0, 1].
    """

    provenance = Provenance(
        paper="a reading of Sparsity Meets Similarity",
        arxiv="2409.01162",
        licence="no code found",
        read="The abstract alone.",
        deviations=(
            "The rule for the bend is the Kneedle rule, as the paper's was not seen, nor were the layer, rows and "
            "heads of the second cut.",
            "Text is never pruned, as the paper's first version does.",
            'The CLS token\'s feature is not among the cues; ``similarity="mean"`` has the mean feature of the image '
            "in its place (the first cut then keeps the background: of 350 questions of the testbed, `testbed-llava` "
            "answers 14 % correctly at 25, 10 and 5 %; with `random` 65, 43 and 35).",
            "With a given count and the CLS token's attention the first choice is that of `fastervlm`.",
        ),
        evidence=(
            "tests/methods/test_sms.py::test_the_knee_of_one_over_k_is_at_the_root",
            "tests/methods/test_sms.py::test_knees_by_hand",
            "tests/methods/test_sms.py::test_both_cuts_on_a_live_model (eager attention)",
            "tests/runtime/test_auto_budget.py (against masks made by hand)",
        ),
        cost="O(N e), no loop over tokens; the attention rows of all text to all tokens in one layer, by head.",
    )

    similarity: Literal["attention", "mean"] = "attention"
    layer: Layer = 2

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION if self.similarity == "attention" else Cue.ENCODER_FEATURES})

    def second_stage(self) -> Method:
        return SmsInside()

    def counts(self, tokens: VisualTokens) -> Tensor:
        """Those before the knee of each pool's curve."""
        return knees(self.scores(tokens), tokens.valid)

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N): the similarity of each token to its image or frame; anything on padding."""
        if self.similarity == "attention":
            return tokens.cue(Cue.ENCODER_ATTENTION)
        features, valid, frames = tokens.cue(Cue.ENCODER_FEATURES), tokens.valid, tokens.coordinates[..., 0]
        out = torch.zeros(valid.shape, dtype=torch.float32, device=features.device)
        for row, real in enumerate(valid):
            # Row by row without padding, so that a row's scores cannot depend on its neighbours.
            inside, frame = features[row, real].float(), frames[row, real]
            member = (frame.unique()[:, None] == frame).float()
            cosines = normalize(member @ inside, dim=-1) @ normalize(inside, dim=-1).mT
            out[row, real] = snap_near_one((cosines * member).sum(0))
        return out


@dataclass(frozen=True)
class SmsInside(TopK):
    """The second cut: the highest attention of the text."""

    name = "sms"
    where = Where.INSIDE_LLM
    cue = Cue.LLM_TEXT_ATTENTION
    provenance = Sms.provenance

    def counts(self, tokens: VisualTokens) -> Tensor:
        """Those before the knee of each pool's curve."""
        return knees(self.scores(tokens), tokens.valid)

    def scores(self, tokens: VisualTokens) -> Tensor:
        return attention_of_text(tokens)


def knees(scores: Tensor, valid: Tensor) -> Tensor:
    """(B,) long: of each row of (B, N) how many valid scores come before the knee; 0 where there are none."""
    found = [knee(row[real]) if real.any() else 0 for row, real in zip(scores, valid, strict=True)]
    return torch.tensor(found, dtype=torch.long, device=valid.device)


def knee(scores: Tensor) -> int:
    """How many of the highest scores come before the knee of their sorted curve, the one at the knee included.

    Both axes are scaled to [0, 1]; the knee is where the curve, from the highest score to the lowest, lies farthest
    below the chord between its ends (the Kneedle rule), at the first such place.

    Args:
        scores: (n,) any float dtype, in any order.

    Returns:
        At least 1; n where the curve never lies below its chord, so that no score is part of a tail.

    Raises:
        MethodError: on scores of another shape, none, or values that are not finite.
    """
    if scores.ndim != 1 or not len(scores) or not bool(scores.isfinite().all()):
        raise MethodError(f"knee needs one row of finite scores, not an empty one; got shape {tuple(scores.shape)}.")
    curve = scores.double().sort(descending=True).values
    span = curve[0] - curve[-1]
    if len(curve) < 3 or span == 0:
        return len(curve)
    along = torch.linspace(0, 1, len(curve), dtype=torch.float64, device=curve.device)
    below = 1 - along - (curve - curve[-1]) / span
    return int(below.argmax()) + 1 if below.max() > _BEND else len(curve)
