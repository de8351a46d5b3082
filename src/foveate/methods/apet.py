"""ApET: keep the tokens that a few others approximate worst, without attention; prune so again inside the LLM.

The basis B are the first token and those that are farthest, in Euclidean distance, from all in it so far. With the
coefficients A that solve ``A (B B^T + ridge I) = X B^T``, the error of a token is ``|x - A B|``; the K of the highest
error are kept. The last of these, one for each vector of the basis, carry the basis: their values become ``own * x + (1
- own) * b``. Every token that is dropped joins the kept one of the highest cosine among the others, which becomes the
mean of itself and all that joined it.

The second stage, in the middle of the LLM, does the same with the hidden states there.

Budget: `keep` is the average over the layers, as the paper counts: on LLaVA-1.5 keep=64 is 96 tokens, and from layer 16
on 32. Without the second stage `keep` is what is kept before the LLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..devices import known_sizes, places_of, to_host
from ..selection.batch import order_by_score
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance, Where
from .toolkit.constraints import Above, AtLeast, PositiveShare, Share
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.merging import Mixture, group_size, identity_targets, nearest
from .toolkit.published import published
from .toolkit.registry import register_method
from .toolkit.two_stage import TwoStageMethod

Order = Literal["raster", "error"]
Count = Annotated[int, AtLeast(1)]
Ridge = Annotated[float, Above(0)]


@register_method("apet")
@dataclass(frozen=True)
class Apet(TwoStageMethod):
    """The highest errors of approximation by a basis of far apart tokens; the last ones carry that basis.

    Args:
        inside: whether the second stage, inside the LLM, follows. Without it the method runs in vLLM, too.
        basis: how many vectors it has; fewer where fewer tokens than that are kept.
        start: the first of them: the token of this index of the image, counted round and round where it has fewer.
        ridge: regularises the approximation before the LLM.
        own: what the tokens that carry the basis keep of themselves.
        features: ``"encoder"`` approximates features before the projector, ``"projected"`` after it.
        inside_ridge: regularises the approximation inside the LLM.
        layer: zero-based layer whose input the second stage shortens; None: the middle, 16 of 32 and 14 of 28.
        ratio: what the second stage keeps of what the first one left, in (0, 1].
    """

    provenance = Provenance(
        paper="ApET",
        arxiv="2602.19870",
        venue="CVPR 2026",
        repository="MaQianKun0/ApET",
        commit="70cc01b215",
        licence="MIT",
        read="Descriptions of the code.",
        deviations=(
            "The release draws the first token of the basis at random; here it is the first of the image, or that of "
            "`start`.",
            "On LLaVA tokens are merged after the projector, not before it, though by the features before it; its "
            "casts to 16 bits are left out.",
            "Where no more tokens than the basis has are kept, one of them stays itself and the others carry the "
            "first vectors of the basis; where all are kept, none changes.",
            "The second stage keeps a third of the first one's, as on LLaVA-1.5 at 64 tokens, at any budget and on "
            "any family.",
        ),
        evidence=(
            "tests/methods/test_golden_apet.py (outputs of the released code on both families, both stages)",
            "tests/methods/test_apet.py (loops)",
        ),
        cost="A product of N x d with each vector of the basis, twice, and one of K x N tokens.",
    )

    ratio: PositiveShare = 1 / 3
    basis: Count = 10
    start: Annotated[int, AtLeast(0)] = 0
    ridge: Ridge = 1e-5
    own: Share = published(0.0, qwen2_5_vl=0.5)
    features: Source = published("encoder", qwen2_5_vl="projected")
    inside_ridge: Ridge = published(1e-5, qwen2_5_vl=0.1)

    @property
    def needs(self) -> frozenset[Cue]:
        return cues_of(self.features)

    def second_stage(self) -> Method:
        return ApetInside(self.basis, self.start, self.inside_ridge, self.own)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        features = features_of(tokens, self.features)
        return approximate(tokens, features, count, self.basis, self.start, self.ridge, self.own, "raster")


@dataclass(frozen=True)
class ApetInside(Method):
    """The second stage, on the hidden states that enter a layer; the basis is handed out by falling error.

    Args:
        basis: see `Apet`.
        start: see `Apet`.
        ridge: regularises the approximation.
        own: see `Apet`.
    """

    name = "apet"
    where = Where.INSIDE_LLM
    provenance = Apet.provenance

    basis: Count = 10
    start: Annotated[int, AtLeast(0)] = 0
    ridge: Ridge = 1e-5
    own: Share = 0.0

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return approximate(tokens, tokens.features, count, self.basis, self.start, self.ridge, self.own, "error")


def approximate(
    tokens: VisualTokens, features: Tensor, count: Tensor, basis: int, start: int, ridge: float, own: float, by: Order
) -> Mixture:
    """What one stage keeps, and how it mixes.

    Args:
        tokens: of which it chooses.
        features: (B, N, d) that it approximates, any float dtype.
        count: (B,) long.
        basis, start, ridge, own: see `Apet`.
        by: in which order the tokens that carry the basis take its vectors.
    """
    valid = tokens.valid
    keep, mix = torch.zeros_like(valid), []
    sizes = known_sizes(valid) or valid.sum(1).tolist()
    for row, (size, kept) in enumerate(zip(sizes, to_host(count), strict=True)):
        here = places_of(valid[row], size)
        values = features[row, here].float()
        if 0 < kept < size:
            own_keep, weights = _mix(values, kept, min(basis, size), start % size, ridge, own, by)
        else:
            own_keep = torch.full((size,), kept > 0, dtype=torch.bool, device=valid.device)
            weights = torch.eye(size if kept else 0, size, dtype=torch.float32, device=valid.device)
        keep[row, here] = own_keep
        mix.append(weights.new_zeros(len(weights), sum(map(len, tokens.grids[row]))).index_copy_(1, here, weights))
    return Mixture(keep, identity_targets(keep), mix=tuple(mix))


def _mix(
    values: Tensor, count: int, size: int, start: int, ridge: float, own: float, by: Order
) -> tuple[Tensor, Tensor]:
    """Of one image (n, d) which tokens are kept, (n,) bool, and how much they carry of all, (count, n) float32."""
    basis = farthest_points(values, size, start)
    order = order_by_score(errors(values, basis, ridge)[None], torch.ones_like(values[None, :, 0], dtype=torch.bool))[0]
    carriers = min(size, count - 1)
    kept, rest, last = order[:count], order[count:], order[count - carriers : count]
    nobody = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    keep, others = (nobody.scatter(0, some, True) for some in (kept, order[: count - carriers]))
    joined = nearest(values[None], others[None], ~keep[None], [(count - carriers, len(rest))])
    target = torch.maximum(joined, identity_targets(others[None]))
    share = 1 / group_size(target)[0]
    place = (keep.cumsum(0) - 1).clamp_min(0)  # of a kept token among the kept ones
    weights = values.new_zeros(count, len(values))
    weights.scatter_(0, place[target.clamp_min(0)], torch.where(target >= 0, share, 0.0))
    if by == "raster":
        last = last.sort().values
    flat, rows = weights.view(-1), place[last] * len(values)
    flat.scatter_add_(0, rows + last, torch.full_like(share[:carriers], own))
    flat.scatter_add_(0, rows + basis[:carriers], torch.full_like(share[:carriers], 1 - own))
    return keep, weights


def farthest_points(values: Tensor, count: int, start: int) -> Tensor:
    """(count,) long: a first token, and then always the one farthest from all so far; ties to the lowest index.

    Args:
        values: (n, d) float32.
        count: from 1 to n.
        start: the first one.
    """
    picks = torch.full((count,), start, dtype=torch.long, device=values.device)
    nearest_pick = torch.full((len(values),), torch.inf, dtype=torch.float32, device=values.device)
    for step in range(1, count):
        to_last = (values - values.index_select(0, picks[step - 1 : step])).norm(dim=-1)
        nearest_pick = torch.minimum(nearest_pick, to_last)
        picks[step] = nearest_pick.argmax()
    return picks


def errors(values: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """(n,) float32: how far each token is from the best combination of the basis.

    Args:
        values: (n, d) float32.
        basis: (m,) long, which of them it is.
        ridge: added to the diagonal of the basis's Gram matrix.
    """
    vectors = values.index_select(0, basis)
    # In double precision, in which the ridge tells even equal vectors apart; and without a look at whether the matrix
    # is regular, for which the host would wait for a GPU.
    gram = vectors.double() @ vectors.double().mT
    gram += ridge * torch.eye(len(basis), dtype=gram.dtype, device=gram.device)
    coefficients = torch.linalg.solve_ex(gram, (vectors @ values.mT).double()).result.float()
    return (values - coefficients.mT @ vectors).norm(dim=-1)
