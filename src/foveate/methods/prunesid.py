"""A reading of PruneSID: groups of tokens by principal components, and in each the most attended that do not repeat.

Paper: arXiv 2603.09480, ICLR 2026. Reference code: no licence, not read; written from a description of it.
1. A token belongs to the principal component, of the K // 4 first ones of the sigmoid of the features, on which its
   weight is largest. 2. In each group, in the order of the attention, a token suppresses those whose cosine to it is
   above rho * (mean cosine of all pairs), rho = 18 K / N. 3. Each group gets one token, and of the rest of the budget a
   share by its survivors (rounded cumulative sums), but at most min(survivors, 5 * ceil(K / 64)); this cap is raised
   until the budget fits, and what is missing goes to the groups with most survivors. 4. A group keeps its first ones.
Reconstructed: each token's channels are centred before the components are taken, as the routine does that the reference
calls; the cosines are those of the features before the sigmoid, their mean that of the whole image; where all survivors
are kept, suppressed tokens of the highest attention fill the budget. At large budgets nothing is suppressed.
Deviations: exact components, where the reference draws random ones; the CLS token is neither kept nor counted.
Cost class: one N x N eigendecomposition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..selection.cosine import snapped
from ..selection.pools import Pools, prepare, ranking
from ..tokens import Cue, Selection, VisualTokens
from .base import Method, Provenance, register_method
from .checks import check_range
from .compared import Source, check_source, cues_of, features_of


@register_method("prunesid")
@dataclass(frozen=True)
class PruneSid(Method):
    """Tokens of high attention from every principal component of the image.

    Args:
        least_rho: rho is at least this, at least 0; the authors use 1 on Qwen2.5-VL and no limit on LLaVA.
        features: ``"encoder"`` reads features before the projector (the paper), ``"projected"`` after it.
    """

    provenance = Provenance(
        paper="PruneSID, arXiv 2603.09480, ICLR 2026",
        licence="none (code not read)",
        deviations="a reading; exact principal components; CLS neither kept nor counted",
    )

    least_rho: float = 0.0
    features: Source = "encoder"

    def __post_init__(self) -> None:
        check_range("prunesid", "least_rho", self.least_rho, 0)
        check_source("prunesid", self.features)

    @property
    def needs(self) -> frozenset[Cue]:
        return cues_of(self.features) | {Cue.ENCODER_ATTENTION}

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        features = features_of(tokens, self.features)
        attention = tokens.cue(Cue.ENCODER_ATTENTION)
        return Selection(prepare(count, tokens.valid, scores=attention, features=features).select(self._keep))

    def _keep(self, pools: Pools) -> Tensor:
        assert pools.features is not None and pools.scores is not None
        keep, order = torch.zeros_like(pools.valid), ranking(pools.scores, pools.valid)
        sizes = pools.valid.sum(1).tolist()
        for row, (size, count) in enumerate(zip(sizes, pools.counts.tolist(), strict=True)):
            if count:  # the number of components is another for each budget
                best_first = order[row, :size]
                first = self._first(pools.features[row, best_first].float(), count)
                keep[row, best_first[first[:count]]] = True
        return keep

    def _first(self, tokens: Tensor, count: int) -> Tensor:
        """Places of the tokens (n, d), given by descending attention, in the order in which they are kept."""
        group = components(tokens, max(1, count // 4))
        unit = normalize(tokens, dim=-1)
        cosines = snapped(unit @ unit.mT)
        n = len(tokens)
        mean = (cosines.sum() - cosines.diagonal().sum()) / max(1, n * (n - 1))
        rho = max(18 * count / n, self.least_rho)
        alive = survivors((cosines > rho * mean) & (group[:, None] == group))
        member = (group.unique()[:, None] == group) & alive
        quota = torch.tensor(quotas(member.sum(1).tolist(), count), device=tokens.device)
        within = (member & (member.cumsum(1) <= quota[:, None])).any(0)
        # First those within their quota, then survivors, then the suppressed; each by attention.
        return (2 * ~within + 1 * ~alive).argsort(stable=True)


def components(tokens: Tensor, count: int) -> Tensor:
    """(n,) long: for each of the tokens (n, d) the principal component on which its weight is largest."""
    squashed = tokens.sigmoid()
    squashed = squashed - squashed.mean(1, keepdim=True)
    vectors = torch.linalg.eigh(squashed @ squashed.mT).eigenvectors  # by ascending eigenvalue
    return vectors[:, -min(count, *tokens.shape) :].flip(1).abs().argmax(1)


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


def quotas(survivors: list[int], budget: int) -> list[int]:
    """How many tokens each group keeps, with that many survivors in each; fewer than the budget in all if they are."""
    total, rest, cumulative = sum(survivors), budget - len(survivors), 0
    out = []
    for alive in survivors:
        ends = [(2 * rest * some + total) // (2 * total) for some in (cumulative, cumulative + alive)]
        out.append(1 + ends[1] - ends[0])
        cumulative += alive
    cap = 5 * -(-budget // 64)
    while sum(min(cap, alive) for alive in survivors) < min(budget, total):
        cap += 1
    caps = [min(cap, alive) for alive in survivors]
    out = [min(quota, most) for quota, most in zip(out, caps, strict=True)]
    for i in sorted(range(len(out)), key=lambda i: -survivors[i]):
        out[i] += min(caps[i] - out[i], budget - sum(out))
    return out
