"""PyramidDrop: prune at several layers of the LLM, each time by the attention of the last prompt token.

Before layer L runs, with x the hidden states that enter it: ``q, k = rotary(q_proj(norm(x)), k_proj(norm(x)))`` with
the layer's own weights; the score of a token is the softmax attention of the last prompt token to it, in float32 over
all tokens that are there, mean over heads. The highest scores stay, ties by the lower index. Of N tokens of an image,
``N * keep^(s / S)`` are left after stage s of S, so that each stage shrinks it by the same factor, unless `shares` says
otherwise.

Budget: `keep` is what is left after the last stage. The released setting, half at each of three stages (layers 8, 16
and 24 of 32, ratios 0.5, 0.25 and 0.125 of the unpruned image), is keep=0.125, with 0.47 of the tokens on average over
the layers; `Report.average_visual_tokens` tells what it is for another `keep`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..budget import Budget
from ..errors import MethodError
from ..tokens import Cue
from .toolkit.base import Method, ModelFacts, Provenance, Stage
from .toolkit.constraints import Layers, Proportions
from .toolkit.registry import register_method
from .toolkit.schedules import geometric, proportional
from .toolkit.top_k import TopK
from .toolkit.validation import check_falling, check_layer_of


@register_method("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(TopK):
    """The highest attention of the last prompt token in the layer itself, at several layers.

    Args:
        layers: zero-based layers whose input is shortened; None: after each quarter of the layers
            but the last, ``layers * s // 4`` (8, 16 and 24 of 32).
        shares: what is left behind each stage, falling, in proportion to the last; None: each stage shrinks the image
            by the same factor.
    """

    cue = Cue.LLM_ATTENTION_HERE
    provenance = Provenance(
        paper="PyramidDrop",
        arxiv="2410.17247",
        venue="CVPR 2025",
        repository="Cooperx521/PyramidDrop",
        commit="6444f304ae",
        licence="MIT",
        read="A secondary audit.",
        deviations=(
            "Survivors keep their positions, where the reference numbers them anew at each stage; counts are "
            "rounded as every budget's are, where the reference rounds down.",
            "Pruned once, at prefill, as in the reference.",
            "Layers are scaled to the model's depth.",
        ),
        evidence=(
            "tests/methods/test_golden_fastv.py::test_pyramiddrop_stage_by_stage (outputs of the released code)",
            "tests/runtime/test_schedule.py::test_the_row_is_that_of_the_layer (attention of transformers)",
        ),
        cost="The layer's norm and its projections of queries, keys and values once more at each stage, where the "
        "reference projects one query and no values; one row of attention.",
    )

    layers: Layers | None = None
    shares: Proportions | None = None

    def validate(self) -> None:
        if self.shares is not None:
            check_falling("pyramiddrop", self.shares, 3 if self.layers is None else len(self.layers))

    def load(self, facts: ModelFacts) -> Method:
        if self.layers is None and facts.layers < 4:
            raise MethodError(f"pyramiddrop: {facts.label} has only {facts.layers} layers; give layers=.")
        for layer in self.layers or ():
            check_layer_of("pyramiddrop", layer, facts)
        return self

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        at = self.layers or tuple(layers * stage // 4 for stage in (1, 2, 3))
        parts = geometric(budget, len(at)) if self.shares is None else proportional(budget, self.shares)
        return [Stage.inside_llm(self, layer, part) for layer, part in zip(at, parts, strict=True)]
