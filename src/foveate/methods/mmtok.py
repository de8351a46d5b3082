"""MMTok: tokens that cover both the prompt's text and the image, before the LLM.

With text Z (m, d), projected tokens X (N, d) and encoder features Y, P is the softmax over tokens of ``cos(Z, X)``
divided by a temperature and by m, Q that of ``cos(Y, Y)`` divided by another and by N. Greedy maximum coverage of the
rows of P and, weighted, of Q: the gain of token j is the sum over the rows r of ``max(0, C_rj - best C_r so far)``.

On LLaVA-1.5 the reference makes pictures square with a border, knows it from the picture's size, and picks no token of
it, though its rows are to be covered like all others (`skip_padding`). Models are given pixels alone, so that foveate
finds the border in them, as whole rows or columns of patches at the edges that have no colour; most LLaVA-1.5
checkpoints crop pictures instead, and have none. A budget beyond all other tokens takes in the border, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..devices import to_host
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast
from .toolkit.max_coverage import greedy_coverage
from .toolkit.published import published
from .toolkit.registry import register_method
from .toolkit.text_relevance import by_image


@register_method("mmtok")
@dataclass(frozen=True)
class MMTok(Method):
    """Greedy maximum coverage of text and image.

    Args:
        image: weight of covering the image (the paper's alpha); 0 covers the text alone.
        text_temperature: of the softmax for the text, above 0.
        image_temperature: of the softmax for the image, above 0.
        skip_padding: whether tokens that show nothing but the border that makes a picture square are picked last.
    """

    provenance = Provenance(
        paper="MMTok",
        arxiv="2508.18264",
        venue="ICLR 2026",
        repository="Ironieser/MMTok",
        commit="d1522cda0a",
        licence="Apache-2.0",
        read="A secondary audit.",
        deviations=(
            "Z is all text of the prompt, chat template included; the reference leaves out the start token, some "
            "fifty stop words and its benchmarks' answer instructions, for which it takes a tokenizer.",
            "Once no token gains anything, which the paper does not speak of, the others follow by all that they "
            "cover.",
            "Counts are rounded to the nearest, where the code for Qwen cuts them off.",
        ),
        evidence=(
            "tests/methods/test_golden_text.py::test_mmtok (outputs of the released code, border included)",
            "tests/methods/test_mmtok.py::test_lists (loops)",
        ),
        cost="N x (N + M) products for M text tokens, then K steps of O(N (N + M)).",
    )

    image: Annotated[float, AtLeast(0)] = 0.5
    text_temperature: Annotated[float, AtLeast(1e-4)] = published(0.01, llava=0.02)
    image_temperature: Annotated[float, AtLeast(1e-4)] = 0.2
    skip_padding: bool = published(False, llava=True)

    @property
    def needs(self) -> frozenset[Cue]:
        asked = {Cue.TEXT_EMBEDDINGS: True, Cue.ENCODER_FEATURES: self.image, Cue.PADDING: self.skip_padding}
        return frozenset(cue for cue, needed in asked.items() if needed)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        keep = torch.zeros_like(tokens.valid)
        for row, ((places, visual, text), budget) in enumerate(zip(by_image(tokens), to_host(count), strict=True)):
            worth = _attention(visual, text, self.text_temperature)
            if self.image:
                encoded = tokens.cue(Cue.ENCODER_FEATURES)[row, places].float()
                worth = torch.cat([worth, self.image * _attention(encoded, encoded, self.image_temperature)], 1)
            last = tokens.cue(Cue.PADDING)[row, places] if self.skip_padding else None
            keep[row].index_fill_(0, places[greedy_coverage(worth, budget, last)], True)
        return Selection(keep)


def _attention(tokens: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """(n, r): what each token gets of each row's softmax over tokens, all together 1."""
    cosines = normalize(tokens, dim=-1) @ normalize(rows, dim=-1).mT
    return (cosines / temperature).softmax(0) / max(len(rows), 1)
