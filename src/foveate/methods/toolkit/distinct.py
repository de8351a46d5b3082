"""How many distinct tokens an image has: the count of ``keep="auto"`` for methods without a rule of their own.

Each token counts one divided by the number of tokens that are similar to it, itself included, so that k groups of
tokens, each alike within and unlike the others, count k, whatever their sizes: the similarity-sensitive diversity of
order 0 of Leinster and Cobbold (2012), where tokens are similar or not. Paper without ink, sky and walls count little;
every word and every number counts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...devices import from_host, full_precision
from ...selection.similarity import CHUNK, snap_near_one

# Calibrated on pages, charts and photos of the testbed's validation split: see docs/guides/documents.md.
SIMILARITY = 0.8
FLOOR = 0.1


@full_precision
def count_distinct(features: Tensor, valid: Tensor, similarity: float = SIMILARITY) -> Tensor:
    """How many distinct tokens each image has, rounded, halves up.

    Examples:
        >>> import torch
        >>> features = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 0.1]]])
        >>> foveate.methods.toolkit.count_distinct(features, torch.ones(1, 4, dtype=torch.bool)).tolist()
        [2]

    Args:
        features: (B, N, d), any float dtype; compared in float32. Rows of zeros are similar to nothing.
        valid: (B, N) bool, the tokens that are there.
        similarity: the cosine from which on two tokens are similar, in (0, 1].

    Returns:
        (B,) long, from 1 to the number of valid tokens; 0 where there are none. It takes O(N^2 d) operations and
        O(N d) memory: the N x N cosines are made 1024 rows at a time.
    """
    # Row by row without padding, so that a count cannot depend on its neighbours.
    found = [_distinct(row[real], similarity) for row, real in zip(features, valid, strict=True)]
    return from_host(found, features.device)


def _distinct(features: Tensor, similarity: float) -> int:
    """The count of one image's features (n, d)."""
    unit = normalize(features.float(), dim=-1)
    alike = [
        (snap_near_one(unit[start : start + CHUNK] @ unit.mT) >= similarity).sum(1)
        for start in range(0, len(unit), CHUNK)
    ]
    if not alike:
        return 0
    # On the host in float64, which not every device has; the last digit must not decide where halves go.
    total = torch.cat(alike).clamp_min(1).cpu().double().reciprocal().sum().item()
    return math.floor(total + 0.5 + 1e-9)
