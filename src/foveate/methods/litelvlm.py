"""LiteLVLM: half of the tokens are those least like the question, the others those that tell most of the image.

Between CLIP's patches and text the patches of the thing that the text names are often the least similar to it, so the
lowest cosines to the mean of the text's embeddings are kept: the referent. Of the rest those are kept, as its
surroundings, that the CLS token would read most of if it attended by cosines alone: ``|softmax_j(cos(q_cls, k_j) /
sqrt(d)) v_j|`` in the last layer of the encoder, with the heads side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..budget import round_half_up
from ..devices import from_host, to_host
from ..selection.batch import mask_from_order, order_by_score, prepare_batch
from ..tokens import Cue, EncoderReading, Selection, VisualTokens
from .nuwa import cosine_to_mean
from .toolkit.base import Method, Provenance
from .toolkit.constraints import Share
from .toolkit.registry import register_method
from .toolkit.text_relevance import Sign, relevance_of


@register_method("litelvlm")
@dataclass(frozen=True)
class LiteLVLM(Method):
    """The lowest similarity to the text, then the largest part in what the encoder's CLS token reads.

    Args:
        referent: share of the budget that goes by similarity, rounded.
        sign: ``"minus"`` keeps the tokens far from the text, which is what the paper is about; ``"plus"`` those near.
    """

    provenance = Provenance(
        paper="LiteLVLM",
        arxiv="2605.13178",
        venue="ICML 2026",
        repository="sejong-rcv/LiteLVLM",
        licence="Apache-2.0",
        read="A description of the code.",
        deviations=(
            "The release compares CLIP's patches with the end token of its text tower, which no checkpoint holds; "
            "here projected tokens are compared with the mean input embedding of all text of the prompt, chat template "
            "included, by which the reversal that the paper found need not hold.",
            "Encoders without a CLS token have the mean of all queries in its place.",
            "The description leaves open how an odd budget is halved: the larger half goes by similarity.",
        ),
        evidence=(
            "tests/methods/test_litelvlm.py (loops)",
            "tests/models/test_encoder_readings.py::test_what_the_cls_token_reads_by_cosines (by hand)",
        ),
        cost="O(N d); the queries, keys and values of one encoder layer are read.",
    )
    instead = "choose another method, such as 'trim' for the text or 'fastervlm' for the encoder"

    referent: Share = 0.5
    sign: Sign = "minus"

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.TEXT_EMBEDDINGS, Cue.ENCODER_READINGS})

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        return (EncoderReading(1.0, "values"),)

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N): the similarity to the text, signed."""
        return relevance_of(tokens, self.sign, cosine_to_mean)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        context = prepare_batch(count, tokens.valid, scores=tokens.cue(Cue.ENCODER_READINGS)[..., 0])
        wanted = [round_half_up(kept * self.referent) for kept in to_host(count)]
        order = order_by_score(self.scores(tokens), tokens.valid)
        first = replace(context, counts=from_host(wanted, order.device), wanted=tuple(wanted))
        referent = mask_from_order(order, first)
        order = order_by_score(torch.where(referent, torch.inf, context.scores), context.valid)
        return Selection(mask_from_order(order, context))
