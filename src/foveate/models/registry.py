"""The registry that finds the adapter of a live model."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any, TypeVar

import transformers
from packaging.version import Version
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import ModelError
from ..tokens import Cue
from .adapter import EVERY_MODEL, ModelAdapter
from .generic import GenericAdapter

ENTRY_POINTS = "foveate.models"

A = TypeVar("A", bound=type[ModelAdapter])
_ADAPTERS: dict[str, type[ModelAdapter]] = {}


def register_model(cls: A) -> A:
    """Class decorator: serve models whose ``config.model_type`` is the adapter's `model_type`.

    Examples:
        >>> from foveate.models.llava import LlavaAdapter
        >>> @foveate.register_model
        ... class OwnAdapter(LlavaAdapter):
        ...     model_type, class_name = "own_llava", "OwnForConditionalGeneration"
        >>> "own_llava" in [family.model_type for family in foveate.supported_models()]
        True
    """
    _ADAPTERS[cls.model_type] = cls
    return cls


def unwrap(model: nn.Module) -> nn.Module:
    """The model of transformers inside the wrappers of PEFT, ``torch.compile``, DDP and FSDP, which all call it."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):  # PEFT's
            inner = inner.get_base_model()
        elif isinstance(inner, OptimizedModule):
            inner = inner._orig_mod
        elif isinstance(inner, (DataParallel, DistributedDataParallel, FullyShardedDataParallel)):
            inner = inner.module
        else:
            return inner  # type: ignore[no-any-return]


def adapter_of(model: nn.Module) -> ModelAdapter:
    """The adapter of a live model: its family's, else the generic one where it is safe.

    Raises:
        ModelError: when no adapter serves this model, with the reason, listing those that are supported.
    """
    _load_all()
    unwrapped: Any = unwrap(model)
    model_type = getattr(getattr(unwrapped, "config", None), "model_type", None)
    adapter = _ADAPTERS.get(str(model_type))
    if adapter is not None and hasattr(unwrapped, adapter.outer_attribute):
        if adapter.oldest and Version(Version(transformers.__version__).base_version) < Version(adapter.oldest):
            raise ModelError(
                f"{adapter.class_name} is pruned right from transformers {adapter.oldest} on, and this is "
                f"{transformers.__version__}; update transformers."
            )
        if _is_of_its_authors(type(unwrapped)) and adapter.__module__.startswith(f"{__package__}."):
            raise ModelError(
                f"{type(unwrapped).__name__} is its authors' own code, loaded by trust_remote_code=True, and foveate "
                f"knows {adapter.class_name} of transformers; load it without, on a release that has this class."
            )
        return adapter.of(unwrapped)
    if hasattr(unwrapped, "get_decoder") and hasattr(unwrapped, "get_output_embeddings"):
        return GenericAdapter(unwrapped)
    known = ", ".join(f"{a.class_name} ({a.model_type})" for a in _ADAPTERS.values())
    raise ModelError(
        f"{type(unwrapped).__name__} (model type {model_type!r}) has no foveate adapter; supported are: {known}, and "
        "other image-text classes of transformers. CONTRIBUTING.md shows how to add one in one file."
    )


def _is_of_its_authors(cls: type) -> bool:
    """Whether a class came with a checkpoint, and does not derive from a model of transformers."""
    derived = any(base.__module__.startswith("transformers.models.") for base in cls.__mro__)
    return cls.__module__.startswith("transformers_modules.") and not derived


@dataclass(frozen=True)
class SupportedModel:
    """A row of `supported_models()`."""

    model_type: str
    class_name: str
    modalities: tuple[str, ...]
    cues: tuple[Cue, ...]
    leaves_out_patches: bool = False
    hybrid: bool = False  # whether layers of its language model carry a state instead of attending
    lineage: tuple[str, ...] = ()  # the family and those whose published settings suit it, nearest first


def supported_models() -> list[SupportedModel]:
    """Every model family that foveate can prune.

    Examples:
        >>> video = [family.class_name for family in foveate.supported_models() if "video" in family.modalities]
        >>> "Qwen2_5_VLForConditionalGeneration" in video
        True
    """
    _load_all()
    return sorted((_row(adapter) for adapter in _ADAPTERS.values()), key=lambda row: row.model_type)


def generic_model() -> SupportedModel:
    """What any other image-text class of transformers gives, where the generic adapter can serve it."""
    return replace(_row(GenericAdapter), model_type="any other", modalities=("image", "video"))


def _row(adapter: type[ModelAdapter]) -> SupportedModel:
    cues = sorted(adapter.cues | Cue.of(*EVERY_MODEL), key=lambda cue: cue.name)
    row = (adapter.model_type, adapter.class_name, adapter.modalities, tuple(cues))
    return SupportedModel(*row, adapter.leaves_out_patches, adapter.hybrid, adapter.lineage())


@functools.cache  # reading what every installed package offers takes milliseconds, and every attachment asks
def _load_all() -> None:
    for name in _builtin_modules():
        importlib.import_module(f"{__package__}.{name}")
    for entry in entry_points(group=ENTRY_POINTS):
        register_model(entry.load())


def _builtin_modules() -> Iterator[str]:
    package = importlib.import_module(__package__)
    return (module.name for module in pkgutil.iter_modules(package.__path__))
