"""VisionZip: keep the tokens with the highest attention in the vision encoder, and merge the others into a few.

With C contextual tokens out of K: the K - C tokens of the highest encoder attention are dominant and stay as they are.
Of the R others, in raster order, those at 0, s, 2s, ... with s = max(1, R // C) are targets, and every other token
joins the target of the highest cosine; a target becomes ``itself + mean of those that joined it``.

On LLaVA the released code has C = 10 of K = 64, 20 of 128 and 30 of 192, and so has this at any K. On Qwen2.5-VL its C
is max(1, int(N / 20)), a share of all N tokens and not of the kept ones; below 5 % one token is left dominant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..devices import from_host, known_sizes, to_host
from ..selection import topk
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import Share
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.merging import group_size, identity_targets, nearest
from .toolkit.published import published
from .toolkit.registry import register_method


@register_method("visionzip")
@dataclass(frozen=True)
class VisionZip(Method):
    """Dominant tokens by encoder attention, contextual ones by merging the rest.

    Args:
        contextual: share that goes to contextual tokens; at least one token is dominant. The default is the
            paper's 10 of 64, 20 of 128 and 30 of 192 on LLaVA; 0 keeps dominant tokens alone.
        contextual_of: what it is a share of: the ``"kept"`` tokens, rounded, or all tokens of the ``"image"``, rounded
            down, but at least one token.
        rule: ``"sum"`` adds the mean of the joined tokens to their target (the paper; about twice the length of a
            token), ``"mean"`` averages over target and joined tokens.
        features: ``"encoder"`` compares features before the projector, ``"projected"`` after it.
    """

    provenance = Provenance(
        paper="VisionZip",
        arxiv="2412.04467",
        venue="CVPR 2025",
        repository="dvlab-research/VisionZip",
        commit="3151f6d",
        licence="Apache-2.0",
        read="Descriptions of that code and, for Qwen2.5-VL, of the fork jsilvcast/VisionZip at c00dbe5ecb, "
        "Apache-2.0, which still has that port.",
        deviations=(
            "Cosines of the encoder's features, where the released code has those of the keys of that layer, "
            "averaged over the heads: which tokens are kept does not depend on it, only what is merged into which; "
            "merged after the projector, like the port to Qwen2.5-VL, not before it; contextual tokens stay at the "
            "place of their target instead of coming last; the CLS token is neither kept nor counted.",
            "The port to Qwen2.5-VL truncates the number of dominant tokens, which with C makes K.",
        ),
        evidence=(
            "tests/methods/test_golden_attention.py::test_visionzip (outputs of the released code on both "
            "families, given keys)",
            "tests/methods/test_visionzip.py",
        ),
        cost="One product of K x N tokens, no loop over tokens.",
    )

    contextual: Share = published(10 / 64, qwen2_5_vl=0.05)
    contextual_of: Literal["kept", "image"] = published("kept", qwen2_5_vl="image")
    rule: Literal["sum", "mean"] = "sum"
    features: Source = "encoder"

    @property
    def needs(self) -> frozenset[Cue]:
        compared = cues_of(self.features) if self.contextual else frozenset()
        return compared | {Cue.ENCODER_ATTENTION}

    def _contextual(self, count: int, size: int) -> int:
        """How many of `count` tokens out of `size` are contextual."""
        if self.contextual_of == "kept":
            wanted = math.floor(self.contextual * count + 0.5)
        else:
            wanted = max(1, math.floor(self.contextual * size))
        return max(0, min(wanted, count - 1))

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        valid, attention = tokens.valid, tokens.cue(Cue.ENCODER_ATTENTION)
        if not self.contextual:
            return Selection(topk(attention, count, valid=valid))
        counts, sizes, device = to_host(count), known_sizes(valid) or valid.sum(1).tolist(), valid.device
        merged = [self._contextual(kept, size) for kept, size in zip(counts, sizes, strict=True)]
        strong = [kept - few for kept, few in zip(counts, merged, strict=True)]
        dominant = topk(attention, from_host(strong, device), valid=valid)
        rest, others = valid & ~dominant, [size - some for size, some in zip(sizes, strong, strict=True)]
        targets = self._targets(attention, rest, others, merged)
        features = features_of(tokens, self.features)
        keep = dominant | targets
        numbers = [(few, left - few) for few, left in zip(merged, others, strict=True)]
        target = torch.maximum(identity_targets(keep), nearest(features, targets, rest & ~targets, numbers))
        size = group_size(target)
        if self.rule == "mean":
            return Selection(keep, target, 1 / size)
        # A target counts whole, and is no member of the mean that is added to it.
        return Selection(keep, target, torch.where(keep, 1.0, 1 / (size - 1).clamp_min(1)))

    def _targets(self, attention: Tensor, rest: Tensor, sizes: list[int], merged: list[int]) -> Tensor:
        """(B, N) bool: the contextual tokens, `merged` of each row's `rest` (B, N), which are as many as `sizes`."""
        return spread(rest, sizes, merged)


def spread(among: Tensor, sizes: list[int], counts: list[int]) -> Tensor:
    """Every s-th token of each row, with the largest s that makes so many: (B, N) bool.

    Args:
        among: (B, N) bool, tokens in raster order.
        sizes: how many those are, in each row.
        counts: how many to take, at most as many.
    """
    steps = [max(1, size // max(1, count)) for size, count in zip(sizes, counts, strict=True)]
    place, stride = among.cumsum(1) - 1, from_host(steps, among.device)[:, None]
    return among & (place % stride == 0) & (place < stride * from_host(counts, among.device)[:, None])
