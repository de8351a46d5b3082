"""DART: take a few pivot tokens with large keys, and keep the tokens that are least like them.

Pivots are the visual tokens and the words with the longest keys, by L1 norm, in the layer below, behind the rotary
embedding, all heads side by side. The visual ones are kept, and what is left of the budget is split over all of them;
each in turn, visual ones first, the longest first, adds so many tokens of the lowest cosine to it that are not kept
yet. Hidden states that enter the layer are compared.

On LLaVA they first pass the model's last norm, words are those behind the image, and shares are equal. On Qwen2.5-VL
there is no norm, words are all of the text, the system prompt too, and shares are rounded up, the last ones getting
what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..errors import MethodError
from ..selection.batch import TokenBatch, order_by_score, prepare_batch
from ..selection.similarity import snap_near_one
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Where
from .toolkit.constraints import AtLeast
from .toolkit.published import published
from .toolkit.registry import register_method
from .toolkit.validation import check_layer_of

PivotsBy = Literal["keys", "states"]
Words = Literal["behind", "all"]
Shares = Literal["equal", "rounded up"]


@register_method("dart")
@dataclass(frozen=True)
class Dart(Method):
    """Tokens and words of long keys, and the tokens that repeat them least.

    Args:
        layer: zero-based layer whose input is shortened; at 0, where embeddings enter, only with
            ``pivots_by="states", text_pivots=0, normed=False``.
        pivots: visual tokens that are kept and compared with.
        text_pivots: words that tokens are compared with.
        pivots_by: whose L1 norm makes a pivot: ``"keys"`` of the layer below, or the hidden ``"states"``.
        words: which of the text can be pivots, that ``"behind"`` the image or ``"all"``.
        normed: whether hidden states pass the model's last norm before they are compared.
        shares: of each pivot, ``"equal"`` with the remainder to the first ones, or ``"rounded up"`` with what is left
            to the last ones.
    """

    where = Where.INSIDE_LLM
    provenance = Provenance(
        paper="DART",
        arxiv="2502.11494",
        venue="EMNLP 2025",
        repository="ModelTC/LightCompress",
        commit="9701d035b0",
        licence="Apache-2.0",
        read="Descriptions of two ports, as the authors' repository could not be fetched: the one named here for "
        "LLaVA, with which a copy of the authors' function agrees, and Tencent/AngelSlim at 67394ce55f, "
        "Apache-2.0, for Qwen2.5-VL.",
        deviations=(
            "A budget that shares do not divide is met, the remainder going to the first pivots (LLaVA's port "
            "keeps so many fewer).",
            "Its pivots come in the order of a Python set, which no rule states; here they come by length.",
            "Where no text is there, or none follows the image, visual pivots are alone.",
        ),
        evidence=(
            "tests/methods/test_golden_dart.py (outputs of both ports, pivots by length)",
            "tests/runtime/test_cues_of_keys.py (keys and states of live models)",
            "tests/methods/test_dart.py::test_lists (loops)",
        ),
        cost="O(pivots N d), no attention.",
    )

    layer: Annotated[int, AtLeast(0)] = 2
    pivots: Annotated[int, AtLeast(1)] = 4
    text_pivots: Annotated[int, AtLeast(0)] = 4
    pivots_by: PivotsBy = "keys"
    words: Words = published("behind", qwen2_5_vl="all")
    normed: bool = published(True, qwen2_5_vl=False)
    shares: Shares = published("equal", qwen2_5_vl="rounded up")

    @property
    def needs(self) -> frozenset[Cue]:
        by_keys = self.pivots_by == "keys"
        asked = {Cue.LLM_KEYS: by_keys, Cue.TEXT_STATES: self.text_pivots, Cue.LAST_NORM: self.normed}
        asked[Cue.TEXT_KEYS] = by_keys and self.text_pivots
        return frozenset(cue for cue, needed in asked.items() if needed)

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of("dart", self.layer, facts, low=0)
        if self.layer == 0 and self.needs:
            raise MethodError(
                "dart: no layer lies below layer 0 whose keys could choose pivots; give a higher layer=, "
                "or pivots_by='states', text_pivots=0, normed=False."
            )
        return self

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        features, valid = self._comparable_states(tokens, tokens.features), tokens.valid
        norms = tokens.cue(Cue.LLM_KEYS) if self.pivots_by == "keys" else _length(tokens.features)
        norms = norms.float().masked_fill(~valid, 0)  # padding holds anything
        words, real = self._words(tokens)
        # The words follow the tokens of each row, marked by a score below 0, so that both stay together as rows are
        # cut out of the batch.
        mark = torch.full(real.shape, -1.0, dtype=torch.float32, device=norms.device)
        batch = prepare_batch(
            count,
            torch.cat([valid, real], 1),
            features=torch.cat([features, words], 1),
            scores=torch.cat([norms, mark], 1),
        )
        return Selection(batch.select(self._keep)[:, : valid.shape[1]])

    def _comparable_states(self, tokens: VisualTokens, states: Tensor) -> Tensor:
        """Hidden states (B, n, d) as they are compared: a norm's own scale of each token changes no cosine."""
        return states.float() * tokens.cue(Cue.LAST_NORM)[:, None] if self.normed else states.float()

    def _words(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """The words that are pivots, (B, T, d), and which of them there are, (B, T); T is at most `text_pivots`."""
        if not self.text_pivots:
            empty = tokens.features[:, :0].float()
            return empty, torch.zeros(empty.shape[:2], dtype=torch.bool, device=empty.device)
        states = tokens.cue(Cue.TEXT_STATES)
        real = tokens.text_follows if self.words == "behind" else tokens.text_valid
        norms = tokens.cue(Cue.TEXT_KEYS) if self.pivots_by == "keys" else _length(states)
        order = order_by_score(norms.float().masked_fill(~real, 0), real)[:, : self.text_pivots]
        there = real.gather(1, order)
        chosen = states.take_along_dim(order[..., None], 1).masked_fill(~there[..., None], 0)
        return self._comparable_states(tokens, chosen), there

    def _keep(self, batch: TokenBatch) -> Tensor:
        word = batch.scores < 0
        visual = batch.valid & ~word
        pivots = order_by_score(batch.scores.masked_fill(word, -1), visual)[:, : self.pivots]
        used = torch.arange(pivots.shape[1], device=pivots.device) < torch.minimum(batch.counts, visual.sum(1))[:, None]
        keep = torch.zeros_like(batch.valid).scatter(1, pivots, used)
        # Words come behind all tokens, in the order in which they are pivots.
        words = order_by_score(torch.zeros_like(batch.scores), word & batch.valid)[:, : int(word.any(0).sum())]
        references = torch.cat([pivots, words], 1)
        there = torch.cat([used, (word & batch.valid).gather(1, words)], 1)
        unit = batch.unit()
        cosines = snap_near_one(unit.take_along_dim(references[..., None], 1) @ unit.mT)
        budget = batch.counts - keep.sum(1)
        return with_least_alike(cosines, keep, visual, self._parts(budget, there))

    def _parts(self, budget: Tensor, there: Tensor) -> Tensor:
        """(B, P) long: how many of the budget (B,) each reference adds, none those that are not `there` (B, P)."""
        place, number = there.cumsum(1) - 1, there.sum(1, keepdim=True).clamp_min(1)
        budget = budget[:, None]
        if self.shares == "equal":
            return (budget // number + (place < budget % number)) * there
        most = (budget + number - 1) // number
        return torch.minimum(most, (budget - place * most).clamp_min(0)) * there


def _length(states: Tensor) -> Tensor:
    """(B, n) float32: the L1 norm of (B, n, d)."""
    return torch.linalg.vector_norm(states.float(), ord=1, dim=-1)


def with_least_alike(cosines: Tensor, keep: Tensor, valid: Tensor, budget: Tensor) -> Tensor:
    """What is kept, and for each reference in turn its share of the budget in tokens that are least like it.

    Args:
        cosines: (B, P, N), references by tokens.
        keep: (B, N) bool.
        valid: (B, N) bool.
        budget: (B, P) long, tokens that each reference adds; or (B,), to be split evenly over the P references, the
            remainder to the first ones.
    """
    references, width = cosines.shape[1:]
    if budget.ndim == 1:
        place = torch.arange(references, device=budget.device)
        budget = (budget // references)[:, None] + (place < (budget % references)[:, None])
    for reference in range(references):
        order = cosines[:, reference].masked_fill(keep | ~valid, torch.inf).argsort(dim=-1, stable=True)
        chosen = torch.arange(width, device=keep.device) < budget[:, reference, None]
        keep = keep | torch.zeros_like(keep).scatter(1, order, chosen)
    return keep
