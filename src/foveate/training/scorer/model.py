"""The importance scorer while it learns: VisionSelector's two linear maps, saved as `LearnedScorer` reads them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ...files import write_bytes
from ...importance import LearnedScorer


class TrainableScorer(nn.Module):
    """Queries and keys of width h for features of width d, in float32; biases start at zero.

    It scores with `LearnedScorer.scores` itself, on its own parameters, so that training and pruning agree.

    Args:
        hidden_size: d, the width of the language model's embeddings.
        width: h; half of d where None, as in the published scorers.
        spread: standard deviation of the initial weights (1e-4 in VisionSelector: almost equal scores).
        seed: of the initial weights.
    """

    def __init__(self, hidden_size: int, width: int | None = None, spread: float = 1e-4, seed: int = 42) -> None:
        super().__init__()
        width = width or max(1, hidden_size // 2)
        self.q_proj, self.k_proj = (nn.Linear(hidden_size, width, dtype=torch.float32) for _ in range(2))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for linear in (self.q_proj, self.k_proj):
                linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * spread)
                linear.bias.zero_()

    def forward(self, features: Tensor, valid: Tensor) -> Tensor:
        """Raw scores (P, N) in float32 of features (P, N, d), 0 where not `valid` (P, N)."""
        return self.as_learned().scores(features, valid)

    def as_learned(self, source: str = "in training") -> LearnedScorer:
        """The scorer that methods take; it shares these parameters."""
        q, k = self.q_proj, self.k_proj
        return LearnedScorer(q.weight, q.bias, k.weight, k.bias, source)

    def save(self, path: Path) -> None:
        """Write ``q_proj.weight``, ``q_proj.bias``, ``k_proj.weight`` and ``k_proj.bias`` in float32."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_bytes(path, save(tensors, metadata={"format": "pt"}))
