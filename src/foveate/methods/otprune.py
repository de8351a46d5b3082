"""OTPrune: the tokens whose determinant grows most, in a kernel that stands for the distribution of all of them.

With each channel of the projected tokens scaled to unit length over the image, V, and ``S = V V^T``, the kernel is ``K
= I + gamma S S^T``. Tokens are picked greedily by the growth of the determinant of K among the picked: a bound of how
far their distribution is from that of all tokens, by optimal transport. Ties go to the lowest index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..selection import similarity
from ..selection.batch import TokenBatch, prepare_batch
from ..selection.dpp import grow_determinant
from ..tokens import Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast
from .toolkit.registry import register_method


@register_method("otprune")
@dataclass(frozen=True)
class OTPrune(Method):
    """Greedy log-determinant of the identity and the squared Gram matrix of channel-normalised tokens.

    Args:
        gamma: weight of the Gram matrix against the identity.
    """

    provenance = Provenance(
        paper="OTPrune",
        arxiv="2602.20205",
        venue="CVPR 2026",
        repository="xiwenc1/OTPrune",
        commit="3414730f39",
        licence="Apache-2.0",
        read="Descriptions of the code.",
        deviations=(
            "Its counts round halves to even, foveate's up; on other families than LLaVA, for which the code is, the "
            "same rule.",
        ),
        evidence=(
            "tests/methods/test_golden_otprune.py (outputs of the released code)",
            "tests/methods/test_otprune.py::test_determinants (computed anew)",
        ),
        cost="N x N products over d channels and over N tokens, then K steps of O(N K); beyond 16384 tokens O(N d) "
        "memory beside the factor, and d x d products.",
    )

    gamma: Annotated[float, AtLeast(0)] = 0.01

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        batch = prepare_batch(count, tokens.valid, features=tokens.features)
        return Selection(batch.select(self._choose))

    def _choose(self, batch: TokenBatch) -> Tensor:
        values = batch.features.float().masked_fill(~batch.valid[..., None], 0)
        values = torch.nn.functional.normalize(values, dim=1)  # each channel, over the tokens
        kernel = SquaredGram(values, self.gamma)
        return grow_determinant(batch, kernel, torch.ones_like(batch.norms), kernel.diagonal, values.shape[1])


class SquaredGram:
    """``I + gamma S S^T`` with ``S = V V^T``: a matrix, or beyond 16384 tokens computed when asked for.

    Args:
        values: V, (B, N, d) float32, zero on padding.
        gamma: weight of the second term.
    """

    def __init__(self, values: Tensor, gamma: float) -> None:
        self._values, self._gamma = values, gamma
        self._images = torch.arange(len(values), device=values.device)
        self.matrix: Tensor | None = None
        if values.shape[1] <= similarity.DENSE_LIMIT:
            gram = values @ values.mT
            self.matrix = (gram @ gram).mul_(gamma)  # S is symmetric
            self.matrix.diagonal(dim1=1, dim2=2).add_(1)
            self.diagonal = self.matrix.diagonal(dim1=1, dim2=2).contiguous()
        else:
            self._weighted = values @ (values.mT @ values)
            self.diagonal = 1 + gamma * (self._weighted * values).sum(-1)

    def of(self, tokens: Tensor) -> Tensor:
        """(B, N) float32: the row of one token (B,) of each image."""
        if self.matrix is not None:
            return self.matrix[self._images, tokens]
        row = self._gamma * (self._weighted @ self._values[self._images, tokens, :, None])[..., 0]
        return row.scatter_add(1, tokens[:, None], torch.ones_like(row[:, :1]))
