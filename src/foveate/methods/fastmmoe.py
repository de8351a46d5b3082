"""A reading of FastMMoE: send visual tokens through fewer experts, merge or drop those that the router treats alike.

Fewer experts: from `expert_layer` on, a visual token goes through the best ``max(1, round(expert_share * k))`` of the k
experts that the router chose for it. Their weights are scaled to the sum of all k. Text is untouched.

Pruning: at each of `layers`, with r_i the router's softmax over all experts and a_i the last prompt token's attention
in the layer below, of T tokens to be left:

1. Group consecutive tokens by `window`. The redundancy of a group is the mean cosine of its r_i to their mean, 0 for a
   single token. Its importance is its mean a_i, divided by the largest such mean.
2. Merge the ``m = floor(merge * T)`` groups with the highest ``balance * redundancy - (1 - balance) * importance`` into
   one token each, in the place of their first one.
3. Of the tokens outside these groups, keep the T - m with the highest a_i.

Budget: `keep` is what is left after the last of `layers`, each of which shrinks an image by the same factor. With
``keep=1.0`` nothing is changed, the experts included; to use fewer experts alone, give a number of tokens that is
larger than any image.

The port's values (balance, merge, layers, then the share left after them) by model: DeepSeek-VL2-small (0.3, 0.05,
(2, 5, 8), 0.754), InternVL3.5-30B-A3B (0.5, 0.025, (5, 8, 12), 0.754).

The sources conflict on the experts: the port leaves fewer experts, which is the default (``expert_reading="number"``);
one audit that says it read the official code has it cut the width of visual experts (``expert_reading="width"``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..budget import Budget
from ..errors import MethodError
from ..selection import topk
from ..selection.similarity import snap_near_one
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Stage
from .toolkit.constraints import AtLeast, Layers, Share
from .toolkit.interventions import ExpertCut, Reading
from .toolkit.merging import identity_targets
from .toolkit.registry import register_method
from .toolkit.schedules import geometric
from .toolkit.validation import check_layer_of

_OF = 48  # layers of the model that the default layers are given for


@register_method("fastmmoe")
@dataclass(frozen=True)
class FastMMoE(Method):
    """Groups that the router treats alike are merged; of the other tokens those stay that the last one attends to.

    Args:
        layers: zero-based layers whose input is shortened; None: 5, 8 and 12 of 48, in proportion.
        balance: weight of the router's redundancy against attention (the paper's alpha).
        merge: share of the tokens to be left that are merged groups (the paper's mu).
        window: tokens of a group.
        merging: ``"mlerp"`` gives a merged token the direction of the group's mean and its largest length, ``"mean"``
            the mean.
        expert_layer: the first layer in which visual tokens go through fewer experts.
        expert_share: share of the chosen experts that is left to visual tokens, above 0; 1 leaves all.
        expert_reading: ``"number"`` leaves fewer experts, ``"width"`` the first channels of each.
    """

    provenance = Provenance(
        paper="a reading of FastMMoE",
        arxiv="2511.17885",
        venue="CVPR 2026 Findings",
        repository="MindVLA-Team/FastMMoE",
        licence="not readable",
        read="Neither the paper's body nor the code: the formulas of an independent port, and two audits.",
        deviations=(
            "Nothing is compared with the authors' output.",
            "R_i is what the layer's own router makes of the layer's normalised input, as the layer's attention "
            "has not run yet, where the port leaves the norm out; fewer groups merge where too few tokens lie "
            "outside them to reach T.",
            "Routers that score each expert by itself, by a sigmoid (GLM-4.5V, Kimi K2.5), are read by the softmax of "
            "the same logits; fewer experts are the best by the weights that such a router gives.",
            "The readings of part one conflict: the port leaves fewer experts, the default here "
            '(``expert_reading="number"``); one audit that says it read the official code has it cut the width of '
            'visual experts instead (``expert_reading="width"``).',
            "`expert_reading` offers fewer experts, as the port has it (default), and narrower ones, as a reading "
            "of the official code says.",
        ),
        evidence=(
            "tests/methods/test_fastmmoe.py::test_groups_that_the_router_treats_alike_merge (by hand)",
            "tests/runtime/seams/test_experts.py::test_fewer_experts_are_as_if_the_others_weighed_nothing (routing "
            "weights set to 0; not compared with the released code)",
        ),
        cost="O(N (d + E)), no loop over tokens; part one halves the visual tokens' share of the experts' work.",
    )

    layers: Layers | None = None
    balance: Share = 0.5
    merge: Share = 0.025
    window: Annotated[int, AtLeast(1)] = 3
    merging: Literal["mlerp", "mean"] = "mlerp"
    expert_layer: Annotated[int, AtLeast(0)] = 2
    expert_share: Share = 0.5
    expert_reading: Reading = "number"

    def validate(self) -> None:
        if self.expert_share == 0:
            raise MethodError("fastmmoe: expert_share=0 leaves visual tokens no expert; give a share such as 0.5.")

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ROUTER_LOGITS, Cue.LLM_ATTENTION})

    @property
    def experts(self) -> ExpertCut | None:
        if self.expert_share == 1:
            return None
        return ExpertCut(self.expert_layer, self.expert_share, self.expert_reading)

    def load(self, facts: ModelFacts) -> Method:
        for layer in (*(self.layers or ()), self.expert_layer):
            check_layer_of("fastmmoe", layer, facts)
        return self

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        places = self.layers or sorted({max(1, layers * layer // _OF) for layer in (5, 8, 12)})
        parts = geometric(budget, len(places))
        return [Stage.inside_llm(self, layer, part) for layer, part in zip(places, parts, strict=True)]

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        attention, valid = tokens.cue(Cue.LLM_ATTENTION).float(), tokens.valid
        target = torch.full(valid.shape, -1, dtype=torch.long, device=valid.device)
        weight = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device)
        merged = torch.zeros(len(valid), dtype=torch.long, device=valid.device)
        for row, wanted in enumerate(count.tolist()):
            # Row by row without padding, so that a row's groups cannot depend on its neighbours.
            index = valid[row].nonzero()[:, 0]
            groups = torch.arange(len(index), device=index.device) // self.window
            router = tokens.cue(Cue.ROUTER_LOGITS)[row, index].float().softmax(-1)
            for group in self._merging(router, attention[row, index], groups, wanted):
                members = index[groups == group]
                target[row, members] = members[0]
                weight[row, members] = self._weight(tokens.features[row, members].float())
                merged[row] += 1
        joined = target >= 0
        alone = topk(attention, count - merged, valid=valid & ~joined)
        if not bool(joined.any()):
            return Selection(alone)
        here = torch.arange(valid.shape[1], device=valid.device)
        return Selection(
            alone | (target == here),
            torch.where(alone, identity_targets(alone), target),
            torch.where(alone, torch.ones_like(weight), weight),
        )

    def _merging(self, router: Tensor, attention: Tensor, groups: Tensor, wanted: int) -> list[int]:
        """The numbers of the groups that merge, of one image's n tokens, of which `wanted` are to be left.

        Args:
            router: (n, E) probabilities.
            attention: (n,).
            groups: (n,) long.
        """
        most = math.floor(self.merge * wanted)
        if not most or len(groups) == 0:
            return []
        member = (groups == groups.unique()[:, None]).float()  # (G, n)
        size = member.sum(1)
        mean = member @ router / size[:, None]
        alike = member @ cosine_similarity(router, mean[groups], dim=-1) / size
        redundancy = snap_near_one(alike.masked_fill(size == 1, 0))
        importance = member @ attention / size
        importance = importance / importance.max().clamp_min(torch.finfo(torch.float32).tiny)
        score = self.balance * redundancy - (1 - self.balance) * importance
        order = score.sort(descending=True, stable=True).indices[: min(most, len(size) - 1)]
        # With m groups merged, wanted - m of the tokens outside them stay, so that there must be as many.
        outside = len(groups) - size[order].cumsum(0).long()
        enough = outside >= wanted - torch.arange(1, len(order) + 1, device=outside.device)
        return order[: int(enough.nonzero().max()) + 1].tolist() if bool(enough.any()) else []

    def _weight(self, features: Tensor) -> float:
        """What each token (w, d) of a group weighs in the merged one."""
        if self.merging == "mean":
            return 1 / len(features)
        length = features.mean(0).norm()
        return float(features.norm(dim=-1).max() / length) / len(features) if length > 0 else 1 / len(features)
