"""AttentionPrior: where a model looks whatever the image, to be divided out of its attention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import MethodError
from ..files import MARK, write_bytes
from ..tokens import Grid
from .measured import cache_folder, checkpoint_key, find_measured, may_be_same

FORMAT = "foveate-prior"
VERSION = "1"
_FLOOR = 1e-6  # of the mean: keeps the prior positive where the bicubic kernel undershoots a map that touches zero


@dataclass(frozen=True, eq=False)
class AttentionPrior:
    """Mean attention of the last prompt token over many images, as a map.

    Args:
        map: (rows, columns) float32, finite, nowhere negative, not all zero.
        layer: the pruning layer that it was calibrated for (its attention is that of the layer below).
        model: name or path of the model; empty for one without a name, which `measured_on` then takes for any.
        images: how many images were averaged.
        prompt: the prompt that was asked about them.
    """

    map: Tensor
    layer: int
    model: str
    images: int
    prompt: str

    def __post_init__(self) -> None:
        usable = self.map.ndim == 2 and self.map.dtype == torch.float32 and self.map.numel() > 0
        if not usable or not bool(self.map.isfinite().all() & (self.map >= 0).all() & (self.map.sum() > 0)):
            raise MethodError(
                f"the prior of {self.model} must be a finite, non-negative, not all-zero float32 map (rows, columns), "
                f"got {tuple(self.map.shape)} {self.map.dtype}; calibrate again."
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, making its folder where needed.

        Raises:
            WriteError: when it cannot be written.
        """
        facts = {"layer": str(self.layer), "model": self.model, "images": str(self.images), "prompt": self.prompt}
        header = {"format": FORMAT, "version": VERSION, "software": MARK, **facts}
        write_bytes(Path(path), save({"map": self.map.cpu().contiguous()}, header))

    @classmethod
    def load(cls, path: str | Path) -> AttentionPrior:
        """Read what `save` wrote.

        Raises:
            MethodError: when the file is missing, is not a prior, or was written by another format version.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                facts = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise MethodError(f"prior {path} is not a readable safetensors file ({error}).") from error
        if facts.get("format") != FORMAT or set(tensors) != {"map"}:
            raise MethodError(f"{path} is not an attention prior; make one with `foveate calibrate`.")
        if facts.get("version") != VERSION:
            raise MethodError(
                f"prior {path} has format version {facts.get('version')}, not {VERSION}: calibrate again."
            )
        try:
            return cls(tensors["map"], int(facts["layer"]), facts["model"], int(facts["images"]), facts["prompt"])
        except (KeyError, ValueError) as error:
            raise MethodError(f"prior {path} has damaged metadata ({error}); calibrate again.") from error

    def measured_on(self, name_or_path: str) -> bool:
        """Whether this may be the prior of the model called so: false only where both have names that differ.

        See `foveate.importance.measured.may_be_same` for what names of one model may be.
        """
        return may_be_same(self.model, name_or_path)

    def resize(self, grid: Grid) -> Tensor:
        """The prior of every token of an image: (N,) float32 > 0, same mean as the map, repeated for each frame."""
        mean = self.map.mean()
        out = self.map
        if tuple(out.shape) != (grid.rows, grid.columns):
            size = (grid.rows, grid.columns)
            out = interpolate(out[None, None], size, mode="bicubic", align_corners=False, antialias=True)[0, 0]
        out = out.clamp_min(torch.maximum(self.map.min(), _FLOOR * mean))
        return (out * (mean / out.mean())).flatten().repeat(grid.frames)


def default_prior_path(model: str, layer: int, revision: str = "") -> Path:
    """Where `foveate calibrate` keeps the prior of a model: in `cache_folder`, under a hash of the model's weights.

    So one checkpoint has one prior, whatever it is called and wherever it lies, and another one in the same place does
    not get it (see `foveate.importance.checkpoints.weights_fingerprint`). Without a checkpoint on this disk, the name
    and the revision stand for it.

    Args:
        model: name or path of the model.
        layer: the layer that the prior is for.
        revision: the commit that it was loaded from, for one of the hub; empty for the one that its cache holds as
            the latest.
    """
    return cache_folder() / "priors" / f"{checkpoint_key(model, revision)}-layer{layer}.safetensors"


def find_prior(model_name_or_path: str, layer: int, revision: str = "") -> AttentionPrior | None:
    """The prior that was calibrated here, else the one that lies in the model's own folder, else None."""
    kept = default_prior_path(model_name_or_path, layer, revision)
    path = find_measured(kept, model_name_or_path, _shipped_name(layer), revision)
    return None if path is None else AttentionPrior.load(path)


def find_shipped_prior(model_name_or_path: str, layer: int, revision: str = "") -> Path | None:
    """The file of the prior that lies in the model's own folder, which one that is calibrated here goes before."""
    return find_measured(None, model_name_or_path, _shipped_name(layer), revision)


def _shipped_name(layer: int) -> str:
    return f"foveate-prior-layer{layer}.safetensors"
