"""PAR-like, a reading: cluster similar tokens, rank the clusters by the prompt, and keep what differs within each.

1. Cluster: join tokens whose cosine is at least `link_threshold`; clusters are the connected components. The key of a
   cluster is the mean of its tokens at unit length.
2. Rank: the relevance of a cluster is the highest cosine of its key to any token of the prompt's text. Clusters are
   taken from the highest to the lowest.
3. Drop duplicates: go through a cluster from the token nearest to its key to the farthest, and keep each whose cosine
   to all that were kept of it is below `duplicate_threshold`, until the budget is spent. The duplicates come after all
   clusters, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..selection.batch import prepare_batch
from ..selection.similarity import snap_near_one
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import Cosine
from .toolkit.registry import register_method
from .toolkit.text_relevance import SIGNS, Sign, by_image


@register_method("par")
@dataclass(frozen=True)
class Par(Method):
    """Clusters by their relevance to the prompt, and in a cluster what differs.

    Args:
        link_threshold: cosine from which on two tokens belong together; the paper's was not seen.
        duplicate_threshold: cosine from which on a token of a cluster repeats another; the paper's was not
            seen. Below `link_threshold` or at it, neighbours repeat each other.
        sign: ``"plus"`` takes clusters near to the text for relevant, ``"minus"`` those far from it.
    """

    provenance = Provenance(
        paper="a reading of PAR (Prompt-Aware Token Reduction)",
        arxiv="2410.07278",
        licence="no code found",
        read="The abstract and a review: the order of the steps is the paper's, the formulas are reconstructed.",
        deviations=(
            "The prompt is taken as it is, where the paper first rewrites the question into a template, which was "
            "not seen.",
            "Prompt and tokens are compared in the LLM's space, where the paper may use CLIP's, whose text tower "
            "checkpoints lack; the text is all of the prompt's, special tokens included.",
            "In a space where few cosines reach `link_threshold`, clusters are single tokens; where all do, it is one.",
        ),
        evidence=(
            "tests/methods/test_par.py::test_by_hand",
            "tests/methods/test_par.py::test_lists (loops)",
        ),
        cost="One product of N x N tokens, and a loop over the tokens of a cluster.",
    )

    link_threshold: Cosine = 0.8
    duplicate_threshold: Cosine = 0.9
    sign: Sign = "plus"

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.TEXT_EMBEDDINGS})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        prepare_batch(count, tokens.valid, features=tokens.features)  # refuses what is not finite
        keep = torch.zeros_like(tokens.valid)
        for row, (places, visual, text) in enumerate(by_image(tokens)):
            if len(places):
                keep[row, places[self.order(visual, text)[: int(count[row])]]] = True
        return Selection(keep)

    def order(self, visual: Tensor, text: Tensor) -> Tensor:
        """(n,) long: tokens (n, d) from the first choice to the last, given the text (m, d); both float32."""
        unit = normalize(visual, dim=-1)
        cosines = snap_near_one(unit @ unit.mT)
        cluster = connected_components(cosines >= self.link_threshold)
        keys = torch.zeros(int(cluster.max()) + 1, unit.shape[1], dtype=torch.float32, device=unit.device).index_add_(
            0, cluster, unit
        )
        keys = normalize(keys, dim=-1)
        likeness = snap_near_one(keys @ normalize(text, dim=-1).mT)
        relevance = SIGNS[self.sign] * likeness.amax(1) if len(text) else keys.new_zeros(len(keys))
        nearness = snap_near_one((unit * keys[cluster]).sum(1))
        chosen: list[Tensor] = []
        rest: list[Tensor] = []
        for number in relevance.argsort(descending=True, stable=True).tolist():
            members = (cluster == number).nonzero()[:, 0]
            members = members[nearness[members].argsort(descending=True, stable=True)]
            new = pick_distinct(cosines[members][:, members], self.duplicate_threshold)
            chosen.append(members[new])
            rest.append(members[~new])
        return torch.cat([*chosen, *rest])


def connected_components(joined: Tensor) -> Tensor:
    """(n,) long: each token's connected component in the graph (n, n) bool, numbered by first tokens."""
    first = torch.arange(len(joined), device=joined.device)
    joined = joined | torch.eye(len(joined), dtype=torch.bool, device=joined.device)
    while True:
        lower = torch.where(joined, first[None], len(joined)).amin(1)
        lower = lower[lower]  # what a neighbour's first token has reached, too
        if torch.equal(lower, first):
            return first.unique(return_inverse=True)[1]
        first = lower


def pick_distinct(cosines: Tensor, threshold: float) -> Tensor:
    """(n,) bool: tokens whose cosine (n, n) to every token picked before is below `threshold`."""
    near = (cosines >= threshold).tolist()
    out: list[int] = []
    for i, row in enumerate(near):
        if not any(row[j] for j in out):
            out.append(i)
    return torch.zeros(len(near), dtype=torch.bool, device=cosines.device).index_fill_(
        0, torch.tensor(out, dtype=torch.long, device=cosines.device), True
    )
