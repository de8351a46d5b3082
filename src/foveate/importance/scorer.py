"""LearnedScorer: the trained importance scorer of VisionSelector (arXiv 2510.16598), collapsed to one direction.

The scorer maps each token to a query and a key of width h and scores token i by the mean over j of
q_i . k_j / sqrt(h), without a softmax. The mean of the keys is the key of the mean token, so
w_i = q_i . k(mean v) / sqrt(h) holds exactly and costs O(N d) where the map of all pairs costs O(N^2 h).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import MethodError

_KEYS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")


@dataclass(frozen=True, eq=False)
class LearnedScorer:
    """Two biased linear maps, weights (h, d) and biases (h), and where they came from.

    Raises:
        MethodError: when the shapes do not belong together.
    """

    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    k_bias: Tensor
    source: str = "memory"
    _placed: dict[torch.device, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        tensors = (self.q_weight, self.q_bias, self.k_weight, self.k_bias)
        shape = tuple(self.q_weight.shape)
        for key, tensor, wanted in zip(_KEYS, tensors, (shape, shape[:1]) * 2, strict=True):
            if len(shape) != 2 or tuple(tensor.shape) != wanted:
                raise MethodError(
                    f"scorer {self.source}: {key} is {tuple(tensor.shape)}; expected weights (h, d) and biases (h) "
                    f"that agree with q_proj.weight {shape}."
                )

    @classmethod
    def load(cls, path_or_hub_id: str | Path, revision: str | None = None) -> LearnedScorer:
        """Read a scorer from a ``.safetensors`` file, a folder with one such file, or a repository on the hub.

        Raises:
            MethodError: when nothing is found there, or the tensors are not those of a scorer.
        """
        file, source = _locate(str(path_or_hub_id), revision), str(path_or_hub_id)
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise MethodError(f"scorer {source}: {file} is not a readable safetensors file ({error}).") from error
        prefix = next((key.removesuffix(_KEYS[0]) for key in sorted(tensors) if key.endswith(_KEYS[0])), "")
        wanted = [prefix + key for key in _KEYS]
        missing, extra = sorted(set(wanted) - tensors.keys()), sorted(tensors.keys() - set(wanted))
        if missing or extra:
            raise MethodError(
                f"scorer {source}: {file} must hold exactly {', '.join(_KEYS)} (a common prefix is fine); "
                f"missing: {_listed(missing)}; unexpected: {_listed(extra)}."
            )
        q_weight, q_bias, k_weight, k_bias = (tensors[key] for key in wanted)
        return cls(q_weight, q_bias, k_weight, k_bias, source)

    @property
    def hidden_size(self) -> int:
        """Width d of the features that this scorer reads."""
        return self.q_weight.shape[1]

    def check(self, hidden_size: int, model: str = "the model") -> None:
        """Raise MethodError unless the scorer reads features of width `hidden_size`, the width of `model`."""
        if hidden_size != self.hidden_size:
            raise MethodError(
                f"the scorer {self.source} reads features of width {self.hidden_size}, but {model} has width "
                f"{hidden_size}; use a scorer trained for this model."
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
        if device not in self._placed:
            tensors = (self.q_weight, self.q_bias, self.k_weight, self.k_bias)
            self._placed[device] = [tensor.to(device, torch.float32) for tensor in tensors]
        return self._placed[device]


def _listed(keys: list[str]) -> str:
    return (", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")) or "none"


def _locate(name: str, revision: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise MethodError(f"scorer {name}: only .safetensors files are read; convert it first.")
        return path
    if not path.is_dir():
        if path.is_absolute() or name.startswith(".") or name.count("/") != 1 or path.suffix == ".safetensors":
            raise MethodError(f"scorer {name}: no such file or folder, and not a hub id of the form owner/name.")
        try:
            path = Path(snapshot_download(name, revision=revision, allow_patterns=["*.safetensors"]))
        except (OSError, ValueError) as error:
            raise MethodError(f"scorer {name}: cannot be fetched from the hub ({error}).") from error
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise MethodError(
            f"scorer {name}: expected one .safetensors file in {path}, found {len(files)}; give the file itself."
        )
    return files[0]
