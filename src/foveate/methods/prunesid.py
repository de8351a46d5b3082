"""PruneSID: group tokens by principal components, and keep the best of each group that do not repeat each other.

With T = K + 1, as the authors count the CLS token on LLaVA:

1. Compute the first T // 4 principal components of the sigmoid of the features, each token's channels centred. A token
   belongs to the component on which its weight is largest.
2. In each group, by falling attention, a token suppresses those whose cosine to it is above rho * (mean cosine of all
   pairs), with rho = 18 T / N.
3. Each group gets one token, and of the rest of the budget a share by its survivors (rounded cumulative sums), but at
   most min(survivors, 5 * ceil(T / 64)). While these caps add up to less than T, all of them rise by 1, each to at most
   the size of its group. What is still missing goes to the groups with most survivors, up to their caps.
4. A group keeps its survivors by attention, and then its suppressed tokens by attention.

On the Qwen-VL families the authors have another rule, which is the default there. No attention is read: the features
are those behind the projector, and the order in a group is that of the weight on its component. T is K; there are at
least 4 groups; rho is at least 1; and the mean cosine is the sum over the pairs i <= j, divided by N * N, about half of
the mean. So no choice depends on which attention the encoder pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..selection.batch import TokenBatch, prepare_batch
from ..selection.similarity import snap_near_one
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.published import published
from .toolkit.regions import rank_within
from .toolkit.registry import register_method

Order = Literal["attention", "weight"]
Mean = Literal["pairs", "half"]


@register_method("prunesid")
@dataclass(frozen=True)
class PruneSid(Method):
    """The best tokens of every principal component of the image.

    Args:
        order: by what tokens come first in their group, ``"attention"`` of the encoder or the ``"weight"`` on its
            component, which needs no attention.
        least_rho: rho is at least this.
        least_groups: how many components there are at least.
        mean: the mean cosine that rho is a multiple of: over all ``"pairs"`` of two tokens, or ``"half"``, the sum over
            the pairs i <= j divided by N * N.
        with_cls: whether the rule's budget counts a CLS token on top of those that are kept, T = K + 1.
        features: ``"encoder"`` reads features before the projector, ``"projected"`` after it.
    """

    provenance = Provenance(
        paper="PruneSID",
        arxiv="2603.09480",
        venue="ICLR 2026",
        repository="ZhengyaoFang/PruneSID",
        commit="4ef17d96b3",
        licence="no licence file, though its README declares Apache-2.0",
        read="A description of the code; it is held to its outputs by tests.",
        deviations=(
            "Exact components, where the authors' code draws random ones; the kept tokens stay in the order of the "
            "image, where theirs on LLaVA come group by group; the authors keep the CLS token, too, and on Qwen-VL "
            "at least 16 tokens.",
            "Where there are more groups than tokens to keep, those of the highest attention (weight) go on.",
        ),
        evidence=(
            "tests/methods/test_golden_prunesid.py (outputs of the released code on both families, given exact "
            "components)",
            "tests/methods/test_prunesid.py::test_lists (loops)",
        ),
        cost="One N x N eigendecomposition.",
    )

    order: Order = published("attention", qwen2_vl="weight")
    least_rho: Annotated[float, AtLeast(0)] = published(0.0, qwen2_vl=1.0)
    least_groups: Annotated[int, AtLeast(1)] = published(1, qwen2_vl=4)
    mean: Mean = published("pairs", qwen2_vl="half")
    with_cls: bool = published(True, qwen2_vl=False)
    features: Source = published("encoder", qwen2_vl="projected")

    @property
    def needs(self) -> frozenset[Cue]:
        attention = {Cue.ENCODER_ATTENTION} if self.order == "attention" else set()
        return cues_of(self.features) | attention

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        features = features_of(tokens, self.features)
        attention = tokens.cue(Cue.ENCODER_ATTENTION) if self.order == "attention" else None
        return Selection(prepare_batch(count, tokens.valid, scores=attention, features=features).select(self._keep))

    def _keep(self, batch: TokenBatch) -> Tensor:
        keep = torch.zeros_like(batch.valid)
        for row, count in enumerate(batch.wanted):  # the number of components is another for each budget
            if count:
                real = batch.real(row)
                scores = batch.scores[row, real] if batch.has("scores") else None
                keep[row, real] = self._of_image(batch.features[row, real].float(), scores, count)
        return keep

    def _of_image(self, tokens: Tensor, attention: Tensor | None, count: int) -> Tensor:
        """(n,) bool: which of the tokens (n, d) are kept, given the attention (n,) where it decides."""
        n, budget = len(tokens), count + int(self.with_cls)
        group, weight = components(tokens, max(self.least_groups, budget // 4))
        order = (weight if attention is None else attention).argsort(descending=True, stable=True)
        tokens, group = tokens[order], group[order]
        unit = normalize(tokens, dim=-1)
        cosines = snap_near_one(unit @ unit.mT)
        total, own = cosines.sum(), cosines.diagonal().sum()
        mean = (total - own) / max(1, n * (n - 1)) if self.mean == "pairs" else (total + own) / (2 * n * n)
        rho = max(18 * budget / n, self.least_rho)
        alive = survivors((cosines > rho * mean) & (group[:, None] == group))

        index = group.unique(return_inverse=True)[1]
        sizes, open_ = index.bincount(), index[alive].bincount(minlength=int(index.max()) + 1)
        quota = torch.tensor(quotas(open_.tolist(), sizes.tolist(), count, budget), device=tokens.device)
        # In a group survivors come first, each kind in order, which is that of the tokens here.
        within = rank_within(index, alive.float()) < quota[index]
        return torch.zeros_like(within).index_copy_(0, order, within & (within.cumsum(0) <= count))


def components(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(n,) long and float32: of the tokens (n, d) the principal component of the largest weight, and its size."""
    squashed = tokens.sigmoid()
    squashed = squashed - squashed.mean(1, keepdim=True)
    vectors = torch.linalg.eigh(squashed @ squashed.mT).eigenvectors  # by ascending eigenvalue
    weight, component = vectors[:, -min(count, *tokens.shape) :].flip(1).abs().max(1)
    return component, weight


def survivors(near: Tensor) -> Tensor:
    """(n,) bool: who is left when each token, in order, if it is left itself, suppresses all later ones near it.

    All tokens without an open one before them that is near are decided at once, which gives the same as one by one.
    """
    before = near.tril(-1)  # [i, j]: j comes before i and is near it
    open_ = torch.ones(len(near), dtype=torch.bool, device=near.device)
    alive = ~open_
    while bool(open_.any()):
        stays = open_ & ~(before & open_).any(1)
        alive |= stays
        open_ &= ~stays & ~(before & stays).any(1)
    return alive


def quotas(survivors: list[int], sizes: list[int], count: int, total: int | None = None) -> list[int]:
    """How many tokens each group keeps.

    Args:
        survivors: of each group.
        sizes: tokens of each group.
        count: how many are to be kept in all.
        total: what the caps must add up to, `count` unless it is given.

    Returns:
        A list with sum `count`, or 1 for each group where there are more groups than that.
    """
    total, rest = min(total or count, sum(sizes)), max(0, count - len(survivors))
    cap = 5 * -(-(total) // 64)
    caps = [min(cap, alive) for alive in survivors]
    while sum(caps) < total:
        caps = [min(cap + 1, size) for cap, size in zip(caps, sizes, strict=True)]
    everyone, cumulative, out = sum(survivors), 0, []
    for alive, cap in zip(survivors, caps, strict=True):
        start, end = ((2 * rest * some + everyone) // (2 * everyone) for some in (cumulative, cumulative + alive))
        out.append(min(1 + end - start, cap))
        cumulative += alive
    for i in sorted(range(len(out)), key=lambda i: -survivors[i]):
        out[i] += max(0, min(caps[i] - out[i], count - sum(out)))
    return out
