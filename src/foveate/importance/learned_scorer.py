"""LearnedScorer: the trained importance scorer of VisionSelector (arXiv 2510.16598), in linear time.

The scorer maps each token to a query and a key of width h and scores token i by the mean over j of
q_i . k_j / sqrt(h), without a softmax. The mean of the keys is the key of the mean token, so
w_i = q_i . k(mean v) / sqrt(h) holds exactly and costs O(N d) where the map of all pairs costs O(N^2 h).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..devices import full_precision, places_of
from ..errors import MethodError
from ..files import expand
from .scorer_files import KEYS, read_tensors, shipped_name


@dataclass(frozen=True, eq=False)
class LearnedScorer:
    """Two biased linear maps, weights (h, d) and biases (h), where they came from, and for where they were trained.

    The last, `at`, is a place as `ModelFacts.at` has it; None where nothing tells.

    Raises:
        MethodError: when the shapes do not belong together.
    """

    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    k_bias: Tensor
    source: str = "memory"
    at: str | None = None
    _on_device: dict[torch.device, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        tensors = (self.q_weight, self.q_bias, self.k_weight, self.k_bias)
        shape = tuple(self.q_weight.shape)
        for key, tensor, wanted in zip(KEYS, tensors, (shape, shape[:1]) * 2, strict=True):
            if len(shape) != 2 or tuple(tensor.shape) != wanted:
                raise MethodError(
                    f"scorer {self.source}: {key} is {tuple(tensor.shape)}; expected weights (h, d) and biases (h) "
                    f"that agree with q_proj.weight {shape}."
                )

    @classmethod
    def load(cls, path_or_hub_id: str | Path, revision: str | None = None, at: str = "") -> LearnedScorer:
        """Read a scorer from a ``.safetensors`` file, a folder that holds one, or a repository on the hub.

        In a model's own folder it is that which was trained for the place `at`, see `find_scorer`. Of a sharded
        checkpoint on the hub only the shards that hold the scorer are fetched.

        Raises:
            MethodError: when nothing is found there, or the tensors are not those of a scorer.
        """
        source = str(path_or_hub_id)
        (q_weight, q_bias, k_weight, k_bias), trained_for = read_tensors(source, revision, at)
        return cls(q_weight, q_bias, k_weight, k_bias, source, trained_for)

    @property
    def hidden_size(self) -> int:
        """Width d of the features that this scorer reads."""
        return self.q_weight.shape[1]

    def check(self, hidden_size: int, model: str = "the model", at: str | None = None) -> None:
        """Raise MethodError unless the scorer reads features of width `hidden_size`, the width of `model`.

        Where a place `at` is given, as `ModelFacts.at` has it, it must have been trained for that place. One of which
        nothing tells for where is taken to be, but not at layers of the language model, whose width all have.
        """
        if hidden_size != self.hidden_size:
            raise MethodError(
                f"the scorer {self.source} reads features of width {self.hidden_size}, but {model} has width "
                f"{hidden_size}; use a scorer trained for this model."
            )
        if at is not None and self.at != at and (self.at is not None or at.startswith("layer:")):
            fix = f"make one with `foveate train scorer --at {at}`" if at.startswith("encoder:") else "use it there"
            raise MethodError(
                f"the scorer {self.source} was trained for {self.at or 'what enters the language model'}, not for "
                f"{at or 'what enters the language model'}; {fix}."
            )

    def scores(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Raw importance of each token, computed per pool in float32.

        Args:
            features: (B, N, d).
            valid: (B, N) bool marking real tokens; all when None.

        Returns:
            (B, N) float32, zero on padding.
        """
        self.check(features.shape[-1], "the given features")
        run = self._row_by_row if features.is_cpu else self._scores
        if torch.is_grad_enabled() and self.q_weight.requires_grad:
            return run(features, valid)  # whoever trains it decides about autocast
        return full_precision(run)(features, valid)

    def _row_by_row(self, features: Tensor, valid: Tensor | None) -> Tensor:
        """Each row alone and without its padding, so that its neighbours do not matter, not even by rounding."""
        scores = torch.zeros(features.shape[:2], dtype=torch.float32, device=features.device)
        for row, tokens in enumerate(features):
            real = slice(None) if valid is None else places_of(valid[row])
            scores[row, real] = self._scores(tokens[real][None], None)[0].float()
        return scores

    def _scores(self, features: Tensor, valid: Tensor | None) -> Tensor:
        q_weight, q_bias, k_weight, k_bias = self._weights(features.device)
        values = features.float()
        if valid is None:
            valid = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        values = values.masked_fill(~valid[..., None], 0.0)
        mean = values.sum(1) / valid.sum(1, keepdim=True).clamp_min(1)
        key = mean @ k_weight.T + k_bias
        raw = (values @ (key @ q_weight)[..., None]).squeeze(-1) + (key @ q_bias)[:, None]
        return (raw / math.sqrt(q_weight.shape[0])).masked_fill(~valid, 0.0)

    def _weights(self, device: torch.device) -> list[Tensor]:
        if device not in self._on_device:
            tensors = (self.q_weight, self.q_bias, self.k_weight, self.k_bias)
            self._on_device[device] = [tensor.to(device, torch.float32, non_blocking=True) for tensor in tensors]
        return self._on_device[device]


def find_scorer(model_name_or_path: str, at: str = "") -> LearnedScorer | None:
    """The scorer that lies in a model's own folder as ``foveate-scorer.safetensors``; None where there is none.

    Args:
        model_name_or_path: of the model.
        at: the place that it was trained for, see `ModelFacts`; that of ``"encoder:8"`` is
            ``foveate-scorer-encoder-8.safetensors``.

    Raises:
        MethodError: when the file is not a scorer.
    """
    path = expand(model_name_or_path) / shipped_name(at)
    return LearnedScorer.load(path) if model_name_or_path and path.is_file() else None
