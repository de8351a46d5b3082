"""Sets of tokens drawn at random, the way `foveate.selection.mmr` picks them, and the probability of each draw.

One token after another is drawn from the softmax of ``score - diversity * (largest cosine to those drawn before)`` over
those that are left. The most probable draw at every step is what `mmr` keeps without normalising the scores, so what is
learned by drawing is what is used by picking.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Draws:
    """Tokens drawn one after another, P rows.

    Attributes:
        picks: (P, C) long, in the order of the draws; -1 behind a row's count.
        log_probability: (P,), of the picks in this order, differentiable in the scores and in the diversity.
    """

    picks: Tensor
    log_probability: Tensor


def draw(scores: Tensor, features: Tensor, valid: Tensor, counts: Tensor, diversity: Tensor, most: int) -> Draws:
    """Draw `counts` tokens of each row.

    Args:
        scores: (P, N) float32.
        features: (P, N, d), whose cosines are the similarity.
        valid: (P, N) bool; at least `counts` of each row.
        counts: (P,) long.
        diversity: scalar.
        most: C, the largest of the counts.
    """
    with torch.no_grad():
        picks, similar = _pick(scores, features, valid, counts, diversity, most, random=True)
        # Who was still there at each draw: (P, C, N).
        gone = functional.one_hot(picks.clamp_min(0), scores.shape[1]).bool() & (picks >= 0)[..., None]
        left = valid[:, None] & ~(gone.long().cumsum(1) - gone.long()).bool()
    logits = (scores[:, None] - diversity * similar).masked_fill(~left, -1e9)
    each = logits.gather(2, picks.clamp_min(0)[..., None])[..., 0] - logits.logsumexp(2)
    return Draws(picks, each.masked_fill(picks < 0, 0.0).sum(1))


@torch.no_grad()
def pick(scores: Tensor, features: Tensor, valid: Tensor, counts: Tensor, diversity: Tensor, most: int) -> Tensor:
    """The most probable token at every step, (P, C) long; arguments as `draw`."""
    return _pick(scores, features, valid, counts, diversity, most, random=False)[0]


def _pick(
    scores: Tensor, features: Tensor, valid: Tensor, counts: Tensor, diversity: Tensor, most: int, random: bool
) -> tuple[Tensor, Tensor]:
    """Picks (P, C), and the similarity (P, C, N) of every token to those picked before."""
    unit = functional.normalize(features.float(), dim=-1)
    here, similar = torch.zeros_like(scores), []
    left, picks = torch.zeros_like(scores).masked_fill(~valid, -torch.inf), []
    for step in range(most):
        similar.append(here)
        logits = scores - diversity * here + left
        if random:
            logits = logits - torch.empty_like(logits).exponential_().log()
        chosen = logits.argmax(1)
        picks.append(torch.where(step < counts, chosen, -1))
        left = left.scatter(1, chosen[:, None], -torch.inf)
        to_chosen = (unit @ unit.gather(1, chosen[:, None, None].expand(-1, 1, unit.shape[-1])).mT)[..., 0]
        here = torch.maximum(here, to_chosen) if step else to_chosen
    return torch.stack(picks, 1), torch.stack(similar, 1)
