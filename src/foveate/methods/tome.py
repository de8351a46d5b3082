"""ToMe before the LLM: merge the most alike tokens in pairs until the budget is met.

One step: tokens at even places are compared with those at odd places; the evens whose best cosine is highest are merged
into their best odd token, by a mean that counts every token merged so far. Steps are repeated, each merging at most
half of the tokens, until as many are left as the budget says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..devices import places_of
from ..selection.batch import prepare_batch
from ..selection.similarity import snap_near_one
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.merging import group_size
from .toolkit.registry import register_method


@register_method("tome")
@dataclass(frozen=True)
class ToMe(Method):
    """Each kept token is the mean of a group of like tokens.

    Args:
        features: ``"projected"`` compares the tokens that the LLM would read, ``"encoder"`` those before the projector.
    """

    provenance = Provenance(
        paper="ToMe",
        arxiv="2210.09461",
        venue="ICLR 2023",
        repository="facebookresearch/ToMe",
        commit="af95e4b",
        licence="CC BY-NC 4.0",
        read="Facts and formulas only.",
        deviations=(
            "The paper merges between the layers of the vision encoder, by the keys of their attention; this is "
            "the baseline that papers on pruning compare with, on the tokens that the LLM would read.",
            "Between steps the tokens are in raster order, each group at the place of its odd token.",
            "No token weighs more in the LLM for having been merged.",
        ),
        evidence=(
            "tests/methods/test_golden_features.py::test_tome (outputs of the released code, where no step but the "
            "last is of an odd number)",
            "tests/methods/test_tome.py::test_lists (loops)",
        ),
        cost="One product of half by half of the tokens a step, log2(N / K) steps.",
    )

    features: Source = "projected"

    @property
    def needs(self) -> frozenset[Cue]:
        return cues_of(self.features)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        features = features_of(tokens, self.features)
        batch = prepare_batch(count, tokens.valid, features=features)
        target = torch.full(batch.valid.shape, -1, dtype=torch.long, device=features.device)
        # Row by row: the shape of each step is another for each image.
        for row, budget in enumerate(batch.wanted):
            real = batch.real(row)
            target[row, real] = real[merge_tokens(features[row, real].float(), budget)]
        keep = target == torch.arange(target.shape[1], device=target.device)
        return Selection(keep, target, 1 / group_size(target))


def merge_tokens(values: Tensor, count: int) -> Tensor:
    """Merge the tokens (n, d) until `count` are left.

    Returns:
        (n,) long, for each token the one whose place its group has.
    """
    everyone = torch.arange(len(values), device=values.device)
    root, place = everyone, everyone  # of each group its place in the image; of each token the group it is in now
    size = torch.ones(len(values), 1, dtype=torch.float32, device=values.device)
    while len(root) > count:
        here = everyone[: len(root)]
        even, odd = here[0::2], here[1::2]
        unit = normalize(values, dim=-1)
        cosines = snap_near_one(unit[even] @ unit[odd].mT)
        partner = cosines.argmax(1)
        by_likeness = cosines.amax(1).argsort(descending=True, stable=True)
        away = by_likeness[: min(len(root) - count, len(odd))]
        goes, into = even[away], odd[partner[away]]

        # As a product, because adding to an index is not deterministic on every device.
        flow = (here[:, None] == into).float()
        total = size + flow @ size[goes]
        values = (values * size + flow @ (values * size)[goes]) / total
        size = total

        moved = here.clone()
        moved[goes] = into
        stays = torch.ones_like(here, dtype=torch.bool)
        stays.index_fill_(0, goes, False)
        place = (stays.cumsum(0) - 1)[moved[place]]
        left = places_of(stays, len(root) - len(away))
        root, values, size = root[left], values[left], size[left]
    return root[place]
