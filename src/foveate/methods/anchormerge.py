"""Anchor merging, RESTORE's part before the LLM: another method chooses half of the tokens, the rest are merged.

Of K tokens, `base` keeps floor(K * (1 - anchors)). Over the n others, with cosines S: ``R_i = sum over j of S_ij``, and
``d_i = 1 - max S_ij over the j of smaller R`` (1 if there is none). The anchors are those of the highest R * d; every
other token joins the anchor of the highest cosine, and the group becomes its mean, at the place of its middle token
(the lower of two).

The paper has the maximum over the j of larger R, its code over those of smaller R; the code made the published figures
and is the default (`stronger`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..devices import from_host, known_sizes, places_of, to_host
from ..errors import MethodError
from ..selection.batch import require
from ..selection.similarity import snap_near_one
from ..tokens import Grid, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import Share
from .toolkit.merging import group_size, identity_targets
from .toolkit.registry import register_method
from .toolkit.wrapper import Wrapper


@register_method("anchormerge")
@dataclass(frozen=True)
class AnchorMerge(Wrapper):
    """A method's choice for a part of the budget; what it leaves out is merged into anchors.

    Args:
        base: the method that chooses, by name or with its hyperparameters; it must prune before the LLM.
        anchors: share of the budget that goes to merged tokens; at least one token is chosen.
        stronger: which tokens an anchor must differ from: those of ``"smaller"`` R (the released code) or of
            ``"larger"`` (the paper); the two conflict and keep different tokens.
    """

    provenance = Provenance(
        paper="RESTORE (its anchor merging)",
        arxiv="2606.01711",
        venue="ICML 2026",
        repository="cvlab-yonsei/RESTORE",
        commit="9b27e687a2",
        licence="GPL-3.0",
        read="A secondary audit alone, facts and formulas only.",
        deviations=(
            "This is not RESTORE, which corrects the attention logits for the size and distance of merged tokens, "
            "too: see `restore`.",
            "Of one token alone the code makes a mean of all; here it is one that `base` chose.",
            "Ties are broken as torch.topk breaks them.",
        ),
        evidence=(
            "tests/methods/test_golden_restore.py (outputs of the released code)",
            "tests/methods/test_anchormerge.py::test_lists (loops, both rules)",
        ),
        cost="That of the wrapped method and one n x n product.",
    )

    base: str | Method = "divprune"
    anchors: Share = 0.5
    stronger: Literal["larger", "smaller"] = "smaller"

    def validate(self) -> None:
        self.require_before_llm()

    def check(self, grid: Grid, count: int) -> None:
        self.inner.check(grid, count - self._count_merged(count))

    def _count_merged(self, count: int) -> int:
        """How many of the kept tokens carry merged ones."""
        # What `base` chooses is rounded down, whatever the last digit of 1 - anchors.
        return max(0, min(math.ceil(self.anchors * count - 1e-9), count - 1))

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        counts = to_host(count)
        merged = [self._count_merged(kept) for kept in counts]
        chosen = self.inner.select(
            tokens, from_host([kept - few for kept, few in zip(counts, merged, strict=True)], count.device)
        )
        if chosen.target is not None:
            raise MethodError(f"{self.name} cannot wrap {self.inner.name}, which merges tokens itself.")
        valid, target = tokens.valid, identity_targets(chosen.keep)
        finite = tokens.features.sum(-1, dtype=torch.float32).isfinite()
        require(finite | ~valid, "features must be finite (no NaN or infinity)")
        sizes = known_sizes(valid)
        for row, groups in enumerate(merged):
            if groups:
                left = None if sizes is None else sizes[row] - (counts[row] - groups)
                rest = places_of(valid[row] & ~chosen.keep[row], left)
                cosines = self._cosines(tokens.features[row, rest])
                anchor = self.anchors_of(cosines, groups)
                target[row, rest] = rest[middles(nearest_of(cosines, anchor))]
        keep = target == torch.arange(target.shape[1], device=target.device)
        return Selection(keep, target, torch.where(target >= 0, 1 / group_size(target), 0.0))

    @staticmethod
    def _cosines(features: Tensor) -> Tensor:
        unit = normalize(features.float(), dim=-1)
        return snap_near_one(unit @ unit.mT)

    def anchors_of(self, cosines: Tensor, count: int) -> Tensor:
        """(n,) bool: the anchors among tokens with these cosines (n, n)."""
        likeness = cosines.sum(1)
        others = likeness[None, :]
        above = others > likeness[:, None] if self.stronger == "larger" else others < likeness[:, None]
        nearest = cosines.masked_fill(~above, -torch.inf).amax(1)
        distinct = torch.where(above.any(1), 1 - nearest, 1.0)
        # Not by the lowest index: of equals the released code takes what torch.topk gives, and so does this.
        anchors = (likeness * distinct).topk(count).indices
        return torch.zeros_like(likeness, dtype=torch.bool).index_fill_(0, anchors, True)


def nearest_of(cosines: Tensor, anchor: Tensor) -> Tensor:
    """(n,) long: for each token its anchor of the highest cosine, ties to the lowest index; anchors their own."""
    here = torch.arange(len(anchor), device=anchor.device)
    return torch.where(anchor, here, cosines.masked_fill(~anchor, -torch.inf).argmax(1))


def middles(group: Tensor) -> Tensor:
    """(n,) long: for each token the middle one, the lower of two, of the tokens with the same `group` (n,)."""
    order = group.argsort(stable=True)
    size = torch.zeros_like(group).scatter_add_(0, group, torch.ones_like(group))
    start = size.cumsum(0) - size
    return order[(start + (size - 1).clamp_min(0) // 2)[group]]
