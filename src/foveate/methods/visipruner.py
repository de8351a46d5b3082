"""VisiPruner: edit attention in shallow layers, keep few tokens from one middle layer on, and none in deep layers.

With s shallow layers, for the prompt only (what is generated looks as ever), behind the softmax and without normalising
anew: in layer 0 the text's weights on visual tokens move to the first one, those of visual tokens vanish; in layers 1
to s - 1 the text's vanish. From layer s + 1 on, let o be the attention heads' outputs for the last prompt token, side
by side, and c_j the part of visual token j in it, weight times value. The first layer where any ``cos(o, o - c_j)`` is
below `fusion` is the filtering layer, behind which the tokens with ``|c_j| > contribution`` are left. A layer after it
in which all cosines of these are at least `stable_cosine` is a still one; after `patience` of them no visual token is
left.

Budget: with ``keep="auto"`` layers and numbers are found as above; an image may be left without tokens. With another
budget, `keep` of the highest ``|c_j|`` are left once, at `layer`, as in the paper's comparison with attention.

Where paper and released code conflict, the code is the default: it adds still layers up, where the paper wants them in
a row (`in_a_row`). Of a 13B model the code leaves layer 0 otherwise (`layer0_edit`). It takes the visual tokens of
several images as one range: all weight goes to the first token of the first image, or the first half of all is hidden
(`images`).

The five layers of `testbed-llava` have none that is shallow in this sense: of 350 questions of the testbed it answers
93 % correctly at 10 %, 88 % with ``shallow=1`` and 26 % with ``shallow=2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..budget import Budget
from ..errors import MethodError
from ..selection.batch import order_by_score
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Stage
from .toolkit.constraints import AtLeast, Cosine, Layer
from .toolkit.interventions import AttentionEdit
from .toolkit.registry import register_method
from .toolkit.validation import check_layer_of

_OF_13B = 40  # layers of LLaVA-1.5's 13B


@register_method("visipruner")
@dataclass(frozen=True)
class VisiPruner(Method):
    """No look in shallow layers, the tokens that move the last prompt token's output, then none.

    Args:
        shallow: number of shallow layers; 0 leaves their attention alone. None: 6 of 32, the paper's
            LLaVA-1.5, in proportion and rounded down.
        layer0_edit: the edit of layer 0: the text's weights go to the first visual token and those of visual tokens
            vanish (``"sink"``, the code's 7B), or those of visual tokens vanish and the text's on the first half of
            them (``"half"``, its 13B). None: ``"half"`` in a model of 40 layers, as LLaVA-1.5's 13B is, else
            ``"sink"``.
        images: whether layer 0 takes the visual tokens of several images ``"together"`` (the code) or ``"apart"``,
            each image with a first token and a first half of its own.
        fusion: the cosine below which a layer is the filtering one.
        contribution: the length above which a token is left.
        relative: whether that length is a share of the whole output's.
        stable_cosine: the cosine from which on a token changes nothing.
        patience: so many still layers, and vision is over; None: never.
        in_a_row: whether they must follow each other (the paper), or add up (the code).
        layer: where a given budget cuts: the zero-based layer whose input is shortened; None: the middle.
    """

    may_drop_all = True
    provenance = Provenance(
        paper="VisiPruner",
        arxiv="2510.17205",
        venue="EMNLP 2025",
        repository="EIT-NLP/VisiPruner",
        commit="d778622e37",
        licence="Apache-2.0",
        read="A secondary audit.",
        deviations=(
            'Behind the shallow layers each image decides for itself; with ``scope="prompt"`` they decide '
            "together, as in the reference.",
            "The thresholds are the paper's for LLaVA-1.5, and lengths know no scale: `relative` compares ``|c_j| "
            "/ |o|`` instead.",
            "Text of a later turn on the same cache sees all of the images before it.",
        ),
        evidence=(
            "tests/methods/test_golden_visipruner.py",
            "tests/methods/test_golden_visipruner_edits.py (outputs of the released code)",
            "tests/runtime/seams/test_attention_edits.py::test_it_equals_edited_weights (weights edited in loops)",
            "tests/methods/test_visipruner.py::test_what_the_cue_holds (eager attention)",
        ),
        cost="In layer 0 three times its attention, in the other shallow layers twice; then one row of attention "
        "and of its values a layer.",
    )

    shallow: Annotated[int, AtLeast(0)] | None = None
    layer0_edit: Literal["sink", "half"] | None = None
    images: Literal["together", "apart"] = "together"
    fusion: Cosine = 0.995
    contribution: Annotated[float, AtLeast(0)] = 0.2
    relative: bool = False
    stable_cosine: Cosine = 0.999
    patience: Annotated[int, AtLeast(1)] | None = 2
    in_a_row: bool = False
    layer: Layer | None = None

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.LLM_CONTRIBUTIONS})

    def _shallow(self, layers: int) -> int:
        return layers * 6 // 32 if self.shallow is None else self.shallow

    def load(self, facts: ModelFacts) -> Method:
        shallow = self._shallow(facts.layers)
        if shallow + 2 >= facts.layers:
            raise MethodError(
                f"visipruner: shallow={shallow} leaves no layer to choose in and one to prune behind it, as "
                f"{facts.label} has {facts.layers} layers; give a lower shallow=."
            )
        if self.layer is not None:
            check_layer_of("visipruner", self.layer, facts)
        return self

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        if budget.by_content:
            return [Stage.inside_llm(self, layer, budget) for layer in range(self._shallow(layers) + 2, layers)]
        return [Stage.inside_llm(self, layers // 2 if self.layer is None else self.layer, budget)]

    def edits(self, layers: int) -> Sequence[AttentionEdit]:
        shallow = self._shallow(layers)
        if not shallow:
            return ()
        first = self.layer0_edit or ("half" if layers == _OF_13B else "sink")
        of: Literal["prompt", "image"] = "prompt" if self.images == "together" else "image"
        text = AttentionEdit(0, "text", moved="first", of=of)
        if first == "half":
            text = AttentionEdit(0, "text", share=0.5, of=of)
        others = [AttentionEdit(layer, "text") for layer in range(1, shallow)]
        return [text, AttentionEdit(0, "visual"), *others]

    def counts(self, tokens: VisualTokens) -> Tensor:
        """All that are there before the filtering layer, what it chose behind it, 0 when vision is over."""
        parts, alive = tokens.cue(Cue.LLM_CONTRIBUTIONS), tokens.valid.sum(1)
        found = [self.kept_behind(parts[row, :size]) for row, size in enumerate(tokens.sizes)]
        return torch.stack([alive[row] if kept is None else kept.sum() for row, kept in enumerate(found)])

    def kept_behind(self, parts: Tensor) -> Tensor | None:
        """(n,) bool: the tokens that go on behind all layers read, (n, L, 3); None where none of them chose."""
        change, length = parts[..., 0], parts[..., 2 if self.relative else 1]
        chose = (change > 1 - self.fusion).any(0).nonzero()[:, 0]
        if not len(chose):
            return None
        at = int(chose[0])
        kept = length[:, at] > self.contribution
        still = 0
        for calm in (change[kept, at + 1 :] <= 1 - self.stable_cosine).all(0).tolist():
            still = still + 1 if calm else 0 if self.in_a_row else still
            if still == self.patience:
                return torch.zeros_like(kept)
        return kept

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        length = tokens.cue(Cue.LLM_CONTRIBUTIONS)[:, :, -1, 2 if self.relative else 1]
        rank = order_by_score(length, tokens.valid).argsort(-1)
        return Selection((rank < count[:, None]) & tokens.valid)
