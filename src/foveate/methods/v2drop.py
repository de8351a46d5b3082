"""V2Drop: keep the tokens that a layer of the LLM changed most, at several layers.

A token's score at layer l is ``|h_l - h_(l-1)|``, with what enters the layer and what entered the one below. No
attention is read. The release keeps the highest at three layers: on LLaVA-1.5 at 3, 17 and 22 of 32, half of what is
there, half of that and one token; on Qwen2-VL at 3, 16 and 22 of 28, a quarter, a twentieth of that and one token.

Budget: `keep` is the average over the layers from the first stage on, as for a method that prunes once; below it all
tokens pass. keep=0.285 is the release's 288, 144 and 1 of LLaVA-1.5's 576 tokens, which is 0.35 on average over all
layers, as `Report.average_visual_tokens` tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..tokens import Cue, VisualTokens
from .toolkit.base import Provenance
from .toolkit.registry import register_method
from .toolkit.staged import StagedMethod
from .toolkit.top_k import TopK


@register_method("v2drop")
@dataclass(frozen=True)
class V2Drop(StagedMethod, TopK):
    """The largest change of the hidden state in the layer below, at several layers.

    Args:
        layers: zero-based layers whose input is shortened; None: 3, 17 and 22 of 32, 3, 16 and 22 of 28, in proportion
            of other depths.
        shares: what is left behind each stage, falling, in proportion; None: the published ones, at another number of
            layers each half of the one before. At least one token of an image is left.
    """

    provenance = Provenance(
        paper="V2Drop",
        arxiv="2509.01552",
        venue="CVPR 2026",
        repository="xuyang-liu16/V2Drop",
        commit="219e03ede8",
        licence="Apache-2.0",
        read="A secondary audit of the code, and a note on the paper.",
        deviations=(
            "The release's shares are taken to be of the tokens that are there, not of the unpruned image; counts are "
            "rounded, where the release rounds down.",
        ),
        evidence=(
            "tests/methods/test_golden_inside.py::test_v2drop (outputs of the released code)",
            "tests/methods/test_v2drop.py",
            "tests/runtime/test_cues_of_layers.py (states of live models)",
        ),
        cost="O(N d) at each stage, no attention.",
    )

    published_layers: ClassVar = {28: (3, 16, 22), 32: (3, 17, 22)}
    published_shares: ClassVar = {28: (0.25, 0.0125, 1e-6), 32: (0.5, 0.25, 1e-6)}

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.STATES_BELOW})

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: how far each token moved in the layer below."""
        return (tokens.features.float() - tokens.cue(Cue.STATES_BELOW).float()).norm(dim=-1)
