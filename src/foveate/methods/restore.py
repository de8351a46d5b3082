"""RESTORE: another method chooses half of the tokens, the rest are merged, and attention is corrected for both.

The anchors are those of `anchormerge`. In all layers of the LLM, log(s) is added to the logits of a key that stands for
s tokens; in the first layer each visual token stands for N / K of the N tokens of its image, of which K are kept. For
the queries of the prompt ``log(ceiling - D)`` is added, too, with D the rotary decay between query and key: D is 1 at
the same position and falls with distance, so that gaps between what is kept cost less attention. The size in the first
layer counts for what is generated, too, as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .anchormerge import AnchorMerge
from .toolkit.base import Provenance
from .toolkit.constraints import AtLeast
from .toolkit.interventions import LogitBias
from .toolkit.registry import register_method
from .toolkit.two_stage import HybridMethod


@register_method("restore")
@dataclass(frozen=True)
class Restore(AnchorMerge, HybridMethod):
    """A method's choice and anchors for the rest, with attention that knows what anchors stand for.

    Args:
        inside: whether attention is corrected. Without, it is `anchormerge`, which runs in vLLM, too.
        base: the method that chooses, by name or with its hyperparameters; it must prune before the LLM.
        anchors: share of the budget that goes to merged tokens; at least one token is chosen.
        stronger: which tokens an anchor must differ from: those of ``"smaller"`` R (the released code) or of
            ``"larger"`` (the paper); the two conflict and keep different tokens.
        ceiling: what the decay is taken from; None leaves distance as it is.
    """

    provenance = Provenance(
        paper="RESTORE",
        arxiv="2606.01711",
        venue="ICML 2026",
        repository="cvlab-yonsei/RESTORE",
        commit="9b27e687a2",
        licence="GPL-3.0",
        read="A secondary audit alone, facts and formulas only.",
        deviations=(
            "What a later turn on the same cache attends to in earlier turns has sizes, but no correction of distance.",
            "Merging as in `anchormerge`: means, not weighted by size, as all that is merged are single tokens.",
        ),
        evidence=(
            "tests/methods/test_golden_restore.py (outputs of the released code)",
            "tests/methods/test_restore.py::test_it_equals_copies_of_keys (weights in loops)",
            "tests/runtime/test_cues_inside_llm.py::test_decay_of_the_published_head",
        ),
        cost="That of `anchormerge`; a bias of L x L for a prompt of L tokens, and kernels without their causal "
        "shortcut.",
    )

    ceiling: Annotated[float, AtLeast(1.001)] | None = 2.0

    @property
    def bias(self) -> LogitBias | None:
        return LogitBias(self.ceiling) if self.inside else None
