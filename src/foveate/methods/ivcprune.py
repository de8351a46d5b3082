"""IVC-Prune: keep coordinate tokens, by which others find their places, and what values like the question's stand for.

Before layer L runs, with v the values of the layer below, c their channels a head:

1. ``W = softmax(v . v' / sqrt(c))``, mean over the heads; over the whole prompt, on the Qwen-VL families over the
   image's tokens alone.
2. Seeds are the max(1, 1 % of N) tokens of the image of the highest mean of W over the question's rows: all text behind
   the image but its first two tokens, which are of the template.
3. A token's score is the mean of W over the rows of the question and of the seeds.
4. Coordinate tokens are the 5 % of the image (10 % on the Qwen-VL families) whose rotary angles have the largest mean
   cosine, and as many with the largest mean sine. They stay; then those of the highest scores, up to the budget.

Budget: `keep` is what is left from `layer` on. The paper's LLaVA-1.5 keeps the best 20 % and the coordinate tokens,
which are 30 % together unless they overlap; its Qwen-VL models 50 % in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..budget import Budget
from ..devices import from_host, places_of, places_of_each, to_host
from ..selection.batch import mask_from_order, order_by_score, prepare_batch
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Stage, Where
from .toolkit.constraints import AtLeast, Layer, Share
from .toolkit.coordinates import count_coordinates, rank_coordinates
from .toolkit.published import published
from .toolkit.registry import register_method
from .toolkit.validation import check_layer_of


@register_method("ivcprune")
@dataclass(frozen=True)
class IvcPrune(Method):
    """Coordinate tokens, and those whose values are most like the question's and the seeds'.

    Args:
        layer: zero-based layer whose input is shortened; None: by `depth`.
        depth: the share of the layers that come before it: 16 of 32 on LLaVA-1.5, 16 of 28 on Qwen2.5-VL-7B, 2 of 28
            on Qwen2-VL.
        coordinates: share of the image that stays because of its mean cosine, and as much because of its mean sine;
            at most about half of the budget together.
        seeds: share of the image whose rows count as the question's do.
        skip: how many tokens of text behind the image are not the question's.
        over: whether W is a softmax over the whole ``"prompt"`` or over the ``"image"`` alone.
    """

    where = Where.INSIDE_LLM
    provenance = Provenance(
        paper="IVC-Prune",
        arxiv="2602.03060",
        venue="ICLR 2026",
        repository="FireRedTeam/IVC-Prune",
        commit="03afd9cee4",
        licence="MIT by its README's badge, without a file",
        read="A description of the code, and its outputs.",
        deviations=(
            "Tokens leave from `layer` on. The released code also takes those that it drops out of the KV cache of the "
            "layers below, once they have run: while decoding, these layers attend here to the whole image, which "
            "costs their share of the cache and can change answers.",
            "Coordinate tokens are at most about half of the budget; in the released settings they always are.",
            "Of several images in a prompt each is chosen from alone, and without text behind the image all of its "
            "tokens take the question's place; the released code has one image and a question.",
            "The released layer of Qwen2.5-VL-3B is 22 of 36, where `depth` gives 21: use layer=22.",
            "The means of cosines and sines are computed in float32.",
        ),
        evidence=(
            "tests/methods/test_golden_ivcprune.py (outputs of the released code on both families)",
            "tests/methods/test_ivcprune.py (loops)",
            "tests/runtime/test_cues_of_values.py (eager attention, tables of positions)",
        ),
        cost="The rows of W of the text and of the seeds: O((M + N / 100) (N + M) c) a head; no N x N map.",
    )

    layer: Layer | None = None
    depth: Share = published(1 / 2, qwen2_5_vl=4 / 7, qwen2_vl=1 / 14)
    coordinates: Share = published(0.05, qwen2_vl=0.1)
    seeds: Share = 0.01
    skip: Annotated[int, AtLeast(0)] = 2
    over: Literal["prompt", "image"] = published("prompt", qwen2_vl="image")

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.LLM_VALUES, Cue.TEXT_VALUES, Cue.ROTARY_MEANS})

    def load(self, facts: ModelFacts) -> Method:
        if self.layer is not None:
            check_layer_of("ivcprune", self.layer, facts)
        return self

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        by_depth = min(max(1, round(self.depth * layers)), layers - 1)
        return [Stage.inside_llm(self, by_depth if self.layer is None else self.layer, budget)]

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: the mean of W over the rows of the question and of the seeds; 0 on padding."""
        valid, follows = tokens.valid, tokens.text_follows
        out = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device)
        there = zip(places_of_each(valid), places_of_each(tokens.text_valid), strict=True)
        for row, (places, words) in enumerate(there):  # without padding, so that no choice depends on its neighbours
            image, prompt = tokens.cue(Cue.LLM_VALUES)[row, places], tokens.cue(Cue.TEXT_VALUES)[row, words]
            out[row, places] = self._score(image.float(), prompt.float(), follows[row, words])
        return out

    def _score(self, image: Tensor, text: Tensor, follows: Tensor) -> Tensor:
        """(n,): of one image, given the values (n, K, c) and (m, K, c), and which (m,) of the text come behind it."""
        keys = (torch.cat([image, text]) if self.over == "prompt" else image).transpose(0, 1)

        def rows(queries: Tensor) -> Tensor:  # (q, n): of W
            logits = queries.transpose(0, 1) @ keys.mT / keys.shape[-1] ** 0.5
            return logits.softmax(-1)[..., : len(image)].mean(0)

        behind = places_of(follows)
        question = behind[self.skip :] if len(behind) > self.skip else behind
        asking = rows(text[question] if len(question) else image)
        number = max(1, round(self.seeds * len(image)))
        seeds = asking.mean(0).argsort(descending=True, stable=True)[:number]
        return torch.cat([asking, rows(image[seeds])]).mean(0)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        valid = tokens.valid
        pairs = zip(tokens.sizes, to_host(count), strict=True)
        number = from_host([count_coordinates(self.coordinates, *pair) for pair in pairs], valid.device)
        anchors = rank_coordinates(tokens.cue(Cue.ROTARY_MEANS), valid) < number[:, None]
        batch = prepare_batch(count, valid, scores=self.scores(tokens))
        scores = batch.scores.masked_fill(anchors, torch.inf)  # type: ignore[union-attr]
        return Selection(mask_from_order(order_by_score(scores, valid), batch))
