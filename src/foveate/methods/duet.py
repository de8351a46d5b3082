"""DUET-VLM: VisionZip with contextual tokens that the encoder attends to, then PyramidDrop inside the LLM.

Before the LLM, of K tokens C are contextual and K - C dominant, as in VisionZip (`visionzip`). The targets of the
contextual ones are not from everywhere in the image but from the ``width * C`` tokens of the highest encoder attention
behind the dominant ones: of these, in raster order, those at 0, s, 2s, ... with ``s = width``. Every other token joins
the target of the highest cosine. Inside the LLM, at half of its layers and at three quarters, the tokens stay that the
last prompt token attends to most in the layer itself, as in PyramidDrop (`pyramiddrop`).

Budget: `keep` is the average over the layers, as the authors count. On LLaVA-1.5, keep=192 is 307 tokens, 154 from
layer 16 on and one from layer 24 on, 128 is 205 and 102, 64 is 102 and 51; the authors have 300 dominant and 7
contextual ones at 192 (``contextual=7 / 307``), 170 and 32 at 128, the default, and 72 and 30 at 64
(``contextual=30 / 102``).
Without its stages inside the LLM `keep` is what is kept before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ..budget import Budget
from ..devices import from_host
from ..selection.batch import order_by_score
from ..tokens import Cue
from .toolkit.base import Method, ModelFacts, Provenance, Stage, Where
from .toolkit.constraints import AtLeast, Layers, Share
from .toolkit.published import published
from .toolkit.registry import register_method
from .toolkit.schedules import layer_average, layers_like
from .toolkit.top_k import TopK
from .toolkit.two_stage import HybridMethod
from .toolkit.validation import check_falling, check_layers_of
from .visionzip import VisionZip, spread

_LAYERS = {28: (14, 21), 32: (16, 24)}  # of Qwen2.5-VL-7B and LLaVA-1.5-7B
LEAST = 1e-6  # a share so small leaves one token; it lets budgets too large for the other stages go on into the last


@register_method("duet")
@dataclass(frozen=True)
class Duet(VisionZip, HybridMethod):
    """VisionZip, its contextual tokens by attention, and two stages by the attention of the last prompt token.

    Args:
        inside: whether the stages inside the LLM follow. Without them the method runs in vLLM, too.
        contextual: share that goes to contextual tokens; at least one token is dominant.
        contextual_of: what it is a share of: the ``"kept"`` tokens, rounded, or all tokens of the ``"image"``, rounded
            down, but at least one token.
        width: from how many times as many tokens the contextual ones are taken.
        rule: ``"sum"`` adds the mean of the joined tokens to their target, ``"mean"`` averages over all of them.
        features: ``"encoder"`` compares features before the projector, ``"projected"`` after it.
        layers: zero-based layers whose input is shortened inside the LLM; None: half of the layers and three quarters,
            16 and 24 of 32, 14 and 21 of 28.
        shares: what each of these stages leaves, falling, of what the first one, before the LLM, leaves; 0 leaves one
            token.
    """

    provenance = Provenance(
        paper="DUET-VLM",
        arxiv="2602.18846",
        venue="CVPR 2026",
        repository="AMD-AGI/DUET-VLM",
        licence="Apache-2.0",
        read="Descriptions of the code, and its README.",
        deviations=(
            "The descriptions leave open which of the preselected tokens become targets, and whether tokens that are "
            "not preselected join them: here as in VisionZip, evenly spread in raster order, and all.",
            "On LLaVA the release reads the attention of salient words of the question, which other libraries find; "
            "here that of the last prompt token, in the same layer.",
            "Its last stage on LLaVA leaves no token, here one; positions stay, as everywhere in foveate.",
            "All deviations of VisionZip: cosines of features in the place of keys, merged after the projector, "
            "contextual tokens at the place of their target, no CLS token.",
        ),
        evidence=("tests/methods/test_duet.py (loops, and the authors' budgets)",),
        cost="VisionZip's product of K x N tokens; at each stage inside the LLM the layer's norm and projections once "
        "more, and one row of attention.",
    )

    contextual: Share = published(32 / 202, qwen2_5_vl=0.05)
    width: Annotated[int, AtLeast(1)] = 4
    layers: Layers | None = None
    shares: tuple[Share, ...] = published((0.5, 0.0), qwen2_5_vl=(0.5, 0.25))

    def validate(self) -> None:
        check_falling("duet", self.shares, 2 if self.layers is None else len(self.layers))

    def load(self, facts: ModelFacts) -> Method:
        if self.inside:
            check_layers_of("duet", self._layers(facts.layers), facts)
        return self

    def _layers(self, layers: int) -> tuple[int, ...]:
        return layers_like(_LAYERS, layers) if self.layers is None else self.layers

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        if not self.inside:
            return [Stage.before_llm(self, budget)]
        at = self._layers(layers)
        shares = (1.0, *(max(share, LEAST) for share in self.shares))
        first, *others = layer_average(budget, (0, *at), shares, layers)
        inside = DuetInside()
        later = [Stage.inside_llm(inside, layer, part) for layer, part in zip(at, others, strict=True)]
        return [Stage.before_llm(self, first), *later]

    def _targets(self, attention: Tensor, rest: Tensor, sizes: list[int], merged: list[int]) -> Tensor:
        wide = [min(self.width * few, size) for few, size in zip(merged, sizes, strict=True)]
        rank = order_by_score(attention, rest).argsort(1)
        return spread(rest & (rank < from_host(wide, rest.device)[:, None]), wide, merged)


@dataclass(frozen=True)
class DuetInside(TopK):
    """The stages inside the LLM: the highest attention of the last prompt token in the layer itself."""

    name = "duet"
    where = Where.INSIDE_LLM
    cue = Cue.LLM_ATTENTION_HERE
    provenance = Duet.provenance
