"""HAWK: attention of the text in the first layer of the LLM, without positions, each head by what it is worth.

With the queries of the text behind the image and the keys of its tokens in layer 0, before the rotary embedding:

1. ``a_h = mean over the text of q_h . k_h / sqrt(channels)``, no softmax; keys of grouped queries are repeated.
2. Each head's a_h is divided by its L2 norm over the image.
3. A token's score is ``sum over heads of w_h a_h``; the highest stay from layer 0 on, so all layers are saved.

The weights w_h are how much answers lose when the head is left out, measured offline on six data sets. They are
published for the 28 heads of Qwen2.5-VL's 7B, and taken there. On any other model all heads count the same, and a note
says so, unless ``head_weights`` are given: one number a query head of the layer, in proportion. `weights_of_losses`
makes them of what you measured.

Budget: `keep` is what is left in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..budget import Budget
from ..errors import MethodError
from ..tokens import Cue, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Stage, Where
from .toolkit.constraints import AtLeast
from .toolkit.notes import Note
from .toolkit.registry import register_method
from .toolkit.top_k import TopK
from .toolkit.validation import check_layer_of

Weights = tuple[Annotated[float, AtLeast(0)], ...]

# Of Qwen2.5-VL-7B.
PUBLISHED: Weights = (
    0.0875, 0.3000, 0.0480, 0.0321, 0.0104, 0.0102, 0.0336, 0.0460, 0.0540, 0.0472, 0.0234, 0.0537, 0.0109, 0.0573,
    0.0276, 0.0403, 0.0429, 0.0352, 0.0162, 0.0519, 0.0553, 0.0266, 0.0222, 0.0480, 0.0337, 0.0250, 0.0000, 0.0224,
)  # fmt: skip


@register_method("hawk")
@dataclass(frozen=True)
class Hawk(TopK):
    """The highest attention of the text without positions, heads weighted by what answers lose without them.

    Args:
        head_weights: of each query head of the layer, in proportion; None: the published ones on Qwen2.5-VL's 7B, the
            same for all heads elsewhere.
        layer: zero-based layer whose queries and keys are read, and whose input is shortened.
        words: which of the text asks, that ``"behind"`` the image or ``"all"`` of the prompt.
    """

    where = Where.INSIDE_LLM
    provenance = Provenance(
        paper="HAWK",
        arxiv="2604.07812",
        venue="CVPR 2026",
        repository="peppery77/HAWK",
        commit="3af2071473",
        licence="Apache-2.0",
        read="A secondary audit of the code, and a note on the paper.",
        deviations=(
            "The text that asks is all of it behind the image, the template's tokens included; where none follows, all "
            "of the prompt's.",
            "Counts are rounded, where the release rounds up and its paper down.",
            "Elsewhere than on Qwen2.5-VL's 7B heads count the same, as no weights are published; foveate does not "
            "measure them.",
        ),
        evidence=(
            "tests/methods/test_golden_inside.py::test_hawk (outputs of the released code)",
            "tests/methods/test_hawk.py",
            "tests/runtime/test_cues_of_layers.py (projections of live models)",
        ),
        cost="The first layer's norm and its projections of queries, keys and values once more; O(N H channels).",
    )

    head_weights: Weights | None = None
    layer: Annotated[int, AtLeast(0)] = 0
    words: Literal["behind", "all"] = "behind"
    _unweighted: bool = field(default=False, init=False, repr=False, compare=False)

    def validate(self) -> None:
        if self.head_weights is not None and not sum(self.head_weights):
            raise MethodError("hawk: head_weights must hold a number above 0 for at least one head.")

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.TEXT_QUERIES_UNROTATED, Cue.KEYS_UNROTATED})

    @property
    def note(self) -> Note | None:
        if not self._unweighted:
            return None
        return Note(
            "hawk: no weights of heads are published for this model, so all heads count the same; give your own as "
            "head_weights."
        )

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of("hawk", self.layer, facts, low=0)
        if self.head_weights is not None:
            self._check(facts.heads or len(self.head_weights))
            return self
        if facts.lineage[:1] == ("qwen2_5_vl",) and facts.heads == len(PUBLISHED) and self.layer == 0:
            return replace(self, head_weights=PUBLISHED)
        bound = replace(self)
        object.__setattr__(bound, "_unweighted", True)
        return bound

    def _check(self, heads: int) -> None:
        """Raise MethodError unless there is a weight for each head."""
        if self.head_weights is not None and len(self.head_weights) != heads:
            raise MethodError(
                f"hawk: there are {len(self.head_weights)} head_weights, but attention has {heads} heads; give one "
                "number for each."
            )

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        # Inside, at layer 0 too: the layer's own queries and keys are there when its input is.
        return [Stage(self, Where.INSIDE_LLM, self.layer, budget)]

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: the weighted sum over heads; anything on padding."""
        queries, keys = tokens.cue(Cue.TEXT_QUERIES_UNROTATED).float(), tokens.cue(Cue.KEYS_UNROTATED).float()
        self._check(queries.shape[2])
        asking = tokens.text_valid
        if self.words == "behind":
            follows = tokens.text_follows
            asking = torch.where(follows.any(1, keepdim=True), follows, asking)
        mean = torch.where(asking[..., None, None], queries, 0.0).sum(1) / asking.sum(1).clamp_min(1)[:, None, None]
        mean = mean.unflatten(1, (keys.shape[2], -1)) / math.sqrt(queries.shape[3])  # heads by the key that they read
        attention = torch.einsum("bkhc,bnkc->bnkh", mean, torch.where(tokens.valid[..., None, None], keys, 0.0))
        attention = attention.flatten(2)
        length = attention.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return ((attention / length) * self._weights(attention)).sum(-1)

    def _weights(self, attention: Tensor) -> Tensor:
        """(H,): the weights of the heads, which add up to 1."""
        given = self.head_weights or (1.0,) * attention.shape[-1]
        weights = torch.tensor(given, dtype=torch.float32, device="cpu").to(attention.device, non_blocking=True)
        return weights / weights.sum()


def weights_of_losses(losses: Sequence[Sequence[float]]) -> Weights:
    """The weights of heads, by the paper's rule, from what you measured when each head was left out.

    Examples:
        >>> from foveate.methods.hawk import weights_of_losses
        >>> weights_of_losses([[1.0, 3.0, 0.0], [0.0, 2.0, 0.0]])
        (0.125, 0.875, 0.0)

    Args:
        losses: for each data set how much its score falls without each head; below 0 where it rises.

    Raises:
        MethodError: for data sets of different numbers of heads, or one on which all heads matter the same.
    """
    if not losses or len({len(of_set) for of_set in losses}) != 1 or not losses[0]:
        raise MethodError("weights_of_losses: give for each data set as many numbers, one for each head.")
    shares = []
    for of_set in losses:
        above = [loss - min(of_set) for loss in of_set]
        if not sum(above):
            raise MethodError("weights_of_losses: a data set on which all heads matter the same says nothing; drop it.")
        shares.append([part / sum(above) for part in above])
    return tuple(sum(of_head) / len(shares) for of_head in zip(*shares, strict=True))
