"""LearnedScorer: the trained importance scorer of VisionSelector (arXiv 2510.16598), collapsed to one direction.

The scorer maps each token to a query and a key of width h and scores token i by the mean over j of
q_i . k_j / sqrt(h), without a softmax. The mean of the keys is the key of the mean token, so
w_i = q_i . k(mean v) / sqrt(h) holds exactly and costs O(N d) where the map of all pairs costs O(N^2 h).

Two layouts are read: a file with the four tensors alone (under any common prefix), and a whole checkpoint, sharded or
not, in which they lie under ``...importance_scorer.``, as training leaves them. Only safetensors; nothing is executed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..devices import full_precision
from ..errors import MethodError

_KEYS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
_MODULE = "importance_scorer."  # what the scorer is called inside a whole checkpoint
_INDEX = "*.safetensors.index.json"
SHIPPED = "foveate-scorer.safetensors"


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
        """Read a scorer from a ``.safetensors`` file, a folder that holds one, or a repository on the hub.

        Of a sharded checkpoint on the hub only the shards that hold the scorer are fetched.

        Raises:
            MethodError: when nothing is found there, or the tensors are not those of a scorer.
        """
        source = str(path_or_hub_id)
        tensors: dict[str, Tensor] = {}
        strays: list[str] = []
        for file in _files(source, revision):
            found, others = _read(source, file)
            tensors |= found
            strays += others
        prefix = next((key.removesuffix(_KEYS[0]) for key in sorted(tensors) if key.endswith(_KEYS[0])), "")
        wanted = [prefix + key for key in _KEYS]
        missing, extra = sorted(set(wanted) - tensors.keys()), sorted((tensors.keys() - set(wanted)) | set(strays))
        if missing or extra:
            raise MethodError(
                f"scorer {source}: it must hold exactly {', '.join(_KEYS)} (a common prefix is fine); "
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
        if torch.is_grad_enabled() and self.q_weight.requires_grad:
            return self._scores(features, valid)  # whoever trains it decides about autocast
        return full_precision(self._scores)(features, valid)

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
        if device not in self._placed:
            tensors = (self.q_weight, self.q_bias, self.k_weight, self.k_bias)
            self._placed[device] = [tensor.to(device, torch.float32) for tensor in tensors]
        return self._placed[device]


def find_scorer(model_name_or_path: str) -> LearnedScorer | None:
    """The scorer that lies in a model's own folder as ``foveate-scorer.safetensors``; None where there is none.

    Raises:
        MethodError: when the file is no scorer.
    """
    path = Path(model_name_or_path).expanduser() / SHIPPED
    return LearnedScorer.load(path) if model_name_or_path and path.is_file() else None


def _listed(keys: list[str]) -> str:
    return (", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")) or "none"


def _read(source: str, file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The scorer's tensors of one file, and the names of tensors that have no business beside a scorer."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            names = list(opened.keys())
            inner = [name for name in names if _MODULE in name]
            chosen = inner or [name for name in names if name.endswith(_KEYS)]
            # Beside `importance_scorer.` lies the rest of its model; without it, anything else means a wrong file.
            strays = [] if inner else sorted(set(names) - set(chosen))
            return {name: opened.get_tensor(name) for name in chosen}, strays
    except (SafetensorError, OSError) as error:
        raise MethodError(f"scorer {source}: {file} is not a readable safetensors file ({error}).") from error


def _files(name: str, revision: str | None) -> list[Path]:
    """The files that hold the scorer, fetched where `name` is a hub id."""
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise MethodError(f"scorer {name}: only .safetensors files are read; convert it first.")
        return [path]
    if (path / SHIPPED).is_file():  # a model's folder, with a scorer beside the model's own weights
        return [path / SHIPPED]
    fetch = not path.is_dir()
    if fetch:
        if path.is_absolute() or name.startswith(".") or name.count("/") != 1 or path.suffix == ".safetensors":
            raise MethodError(f"scorer {name}: no such file or folder, and not a hub id of the form owner/name.")
        path = _fetched(name, revision, [_INDEX])
    shards = _shards(name, path)
    if fetch:
        path = _fetched(name, revision, shards or ["*.safetensors"])
    files = [path / shard for shard in shards] or sorted(path.glob("*.safetensors"))
    if shards and (absent := [file.name for file in files if not file.is_file()]):
        raise MethodError(
            f"scorer {name}: the index names {absent[0]}, which is not there; get the complete checkpoint."
        )
    if not files:
        raise MethodError(
            f"scorer {name}: of .safetensors files, found none there{_pickles(path)}; give a folder that holds one."
        )
    if len(files) != 1 and not shards:
        names = ", ".join(file.name for file in files[:4]) + (" and others" if len(files) > 4 else "")
        raise MethodError(f"scorer {name}: found {len(files)} .safetensors files ({names}); give the file itself.")
    return files


def _fetched(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The local folder of a repository, with the files that match fetched; offline, whatever the cache holds of it."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        try:  # a pinned commit is looked up on the hub even where it is cached
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
        except (OSError, ValueError):
            raise MethodError(f"scorer {name}: not a folder here, and the hub does not give it ({reason}).") from error


def _shards(name: str, folder: Path) -> list[str]:
    """The shards of a checkpoint's index that hold the scorer; none where there is no index."""
    index = next(iter(sorted(folder.glob(_INDEX))), None)
    if index is None:
        return []
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({str(file) for key, file in places.items() if _MODULE in key})
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise MethodError(f"scorer {name}: {index.name} is damaged ({type(error).__name__}); get it again.") from error
    if not shards:
        raise MethodError(
            f"scorer {name}: this checkpoint holds no scorer, nothing in {index.name} is under {_MODULE}*."
        )
    if any(Path(shard).name != shard or not shard.endswith(".safetensors") for shard in shards):
        raise MethodError(f"scorer {name}: {index.name} names files that are not safetensors shards beside it.")
    return shards


def _pickles(folder: Path) -> str:
    pickled = any(folder.glob(pattern) for pattern in ("*.bin", "*.pt", "*.pth"))
    return " (only pickled weights, which are never read because they can run code)" if pickled else ""
