"""SMS-like, a reading of Sparsity Meets Similarity: rank tokens by similarity to the image's CLS token.

Paper: arXiv 2409.01162. Only the abstract was read, no code was found: formulas are reconstructed.
The paper sorts the similarities of the patches to the CLS token and cuts where the curve bends, at another count for
each image; with ``keep="auto"`` so does this method (see `knee`). With another budget the count is given, and the
highest similarities are kept.
Deviations: the rule for the bend is the Kneedle rule, as the paper's was not seen. With a given count and the CLS
token's attention the choice is that of `fastervlm`. The CLS token's feature is not among the cues;
``similarity="mean"`` has the mean feature of the image in its place (on the bundled model that keeps the background: 8
of 75 answers are right at 25, 10 and 5 %, where `random` has 41, 21 and 17). The paper's second cut, inside the LLM by
cross-modal attention, is not included.
Cost class: O(N e), no loop over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import MethodError
from ..selection import topk
from ..selection.cosine import snapped
from ..tokens import Cue, Selection, VisualTokens
from .base import Method, Provenance, register_method
from .checks import check_choice

_BEND = 1e-9  # how far below its chord a curve must lie, the chord being from (0, 1) to (1, 0)


@register_method("sms")
@dataclass(frozen=True)
class Sms(Method):
    """The tokens most similar to what stands for their image.

    Args:
        similarity: ``"attention"`` of the CLS token to a patch (the adapter's encoder attention where there is none),
            or ``"mean"``: the cosine of a patch's feature before the projector to the mean of its image or frame.
    """

    provenance = Provenance(
        paper="a reading of Sparsity Meets Similarity, arXiv 2409.01162",
        licence="no code found",
        deviations="reconstructed from the abstract; cut at the knee with keep='auto' only; first cut only",
    )

    similarity: Literal["attention", "mean"] = "attention"

    def __post_init__(self) -> None:
        check_choice("sms", "similarity", self.similarity, ("attention", "mean"))

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION if self.similarity == "attention" else Cue.ENCODER_FEATURES})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(topk(self.scores(tokens), count, valid=tokens.valid))

    def counts(self, tokens: VisualTokens) -> Tensor:
        """Those before the knee of each pool's curve."""
        scores, valid = self.scores(tokens), tokens.valid
        found = [knee(row[real]) if real.any() else 0 for row, real in zip(scores, valid, strict=True)]
        return torch.tensor(found, device=valid.device)

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N): the similarity of each token to its image or frame; anything on padding."""
        if self.similarity == "attention":
            return tokens.cue(Cue.ENCODER_ATTENTION)
        features, valid, frames = tokens.cue(Cue.ENCODER_FEATURES), tokens.valid, tokens.coordinates[..., 0]
        out = torch.zeros(valid.shape, device=features.device)
        for row, real in enumerate(valid):
            # Row by row without padding, so that a row's scores cannot depend on its neighbours.
            inside, frame = features[row, real].float(), frames[row, real]
            member = (frame.unique()[:, None] == frame).float()
            cosines = normalize(member @ inside, dim=-1) @ normalize(inside, dim=-1).mT
            out[row, real] = snapped((cosines * member).sum(0))
        return out


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
