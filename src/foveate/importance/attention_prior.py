"""AttentionPrior: where a model looks whatever the image, to be divided out of its attention."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import MethodError
from ..files import MARK, expand, write_bytes
from ..tokens import Grid
from .checkpoints import checkpoint_folder, weights_fingerprint

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

        A model keeps the last part of its name wherever it lies, so ``owner/name``, a local copy ``.../name`` and the
        hub's cache ``.../models--owner--name/snapshots/...`` are all one model.
        """
        mine, theirs = short_name(self.model).lower(), short_name(name_or_path).lower()
        return not mine or not theirs or mine == theirs

    def resize(self, grid: Grid) -> Tensor:
        """The prior of every token of an image: (N,) float32 > 0, same mean as the map, repeated for each frame."""
        mean = self.map.mean()
        out = self.map
        if tuple(out.shape) != (grid.rows, grid.columns):
            size = (grid.rows, grid.columns)
            out = interpolate(out[None, None], size, mode="bicubic", align_corners=False, antialias=True)[0, 0]
        out = out.clamp_min(torch.maximum(self.map.min(), _FLOOR * mean))
        return (out * (mean / out.mean())).flatten().repeat(grid.frames)


def cache_folder() -> Path:
    """Where foveate keeps what it measures: ``$FOVEATE_HOME``, or else ``foveate`` in the user's folder of caches.

    That one is ``$XDG_CACHE_HOME`` where it is set to an absolute path, and ``~/.cache`` where it is not.
    """
    if home := os.environ.get("FOVEATE_HOME"):
        return expand(home)
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (caches if caches.is_absolute() else Path("~/.cache").expanduser()) / "foveate"


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


def checkpoint_key(model: str, revision: str = "") -> str:
    """What files of measurements of a model are called by, see `default_prior_path`."""
    folder = checkpoint_folder(model, revision)
    key = weights_fingerprint(folder) if folder is not None else ""
    if not key:
        name = model if folder is None else str(folder.absolute())
        key = re.sub(r"[^A-Za-z0-9._-]+", "--", f"{name}@{revision}" if revision else name).strip("-")
    return key


def find_prior(model_name_or_path: str, layer: int, revision: str = "") -> AttentionPrior | None:
    """The prior that was calibrated here, else the one that lies in the model's own folder, else None."""
    if not model_name_or_path:
        return None
    calibrated = default_prior_path(model_name_or_path, layer, revision)
    if calibrated.is_file():
        return AttentionPrior.load(calibrated)
    folder = checkpoint_folder(model_name_or_path, revision)
    own = None if folder is None else folder / f"foveate-prior-layer{layer}.safetensors"
    return AttentionPrior.load(own) if own is not None and own.is_file() else None


def short_name(model: str) -> str:
    """The last part of a model's name, without the folders it lies in or the owner it has on the hub."""
    cached = re.search(r"models--(?:[^/\\]*--)?([^/\\]+)[/\\]snapshots[/\\]", model)
    return cached[1] if cached else re.split(r"[/\\]", model.rstrip("/\\"))[-1]
