"""foveate: prune the visual tokens of multimodal language models, keep the few that matter.

The public names load on first use (PEP 562): ``import foveate`` itself imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    BudgetError,
    ConfigError,
    FoveateError,
    MethodError,
    ModelError,
    RequestError,
    RuntimeStateError,
    SelectionError,
)
from .version import __version__

if TYPE_CHECKING:
    from .api import attach, compose, prune, prune_inputs
    from .budget import Budget, Conversation
    from .config import PruningConfig
    from .methods.anchored import Anchored
    from .methods.toolkit.at_layer import AtLayer
    from .methods.toolkit.base import Method, Provenance, Stage, Where
    from .methods.toolkit.guided import guided
    from .methods.toolkit.in_encoder import InEncoder
    from .methods.toolkit.registry import get_method, method_names, register_method
    from .models import register_model, supported_models
    from .runtime import Pruning, Report
    from .runtime.batched_windows import batch_windows
    from .tokens import Cue, EncoderReading, Grid, Selection, VisualTokens
    from .verification import CheckReport, check

_LAZY = {
    "Anchored": ".methods",
    "AtLayer": ".methods.toolkit",
    "Budget": ".budget",
    "CheckReport": ".verification",
    "Conversation": ".budget",
    "Cue": ".tokens",
    "EncoderReading": ".tokens",
    "Grid": ".tokens",
    "InEncoder": ".methods.toolkit",
    "Method": ".methods",
    "Provenance": ".methods",
    "Pruning": ".runtime",
    "PruningConfig": ".config",
    "Report": ".runtime",
    "Selection": ".tokens",
    "Stage": ".methods",
    "VisualTokens": ".tokens",
    "Where": ".methods",
    "attach": ".api",
    "batch_windows": ".runtime.batched_windows",
    "check": ".verification",
    "compose": ".api",
    "get_method": ".methods",
    "guided": ".methods.toolkit",
    "method_names": ".methods",
    "prune": ".api",
    "prune_inputs": ".api",
    "register_method": ".methods",
    "register_model": ".models",
    "supported_models": ".models",
}

_ROOMS = {
    "companions",
    "data",
    "evaluation",
    "importance",
    "methods",
    "models",
    "runtime",
    "selection",
    "testbed",
    "visualize",
}

__all__ = [
    "Anchored",
    "AtLayer",
    "Budget",
    "BudgetError",
    "CheckReport",
    "ConfigError",
    "Conversation",
    "Cue",
    "EncoderReading",
    "FoveateError",
    "Grid",
    "InEncoder",
    "Method",
    "MethodError",
    "ModelError",
    "Provenance",
    "Pruning",
    "PruningConfig",
    "Report",
    "RequestError",
    "RuntimeStateError",
    "Selection",
    "SelectionError",
    "Stage",
    "VisualTokens",
    "Where",
    "__version__",
    "attach",
    "batch_windows",
    "check",
    "compose",
    "get_method",
    "guided",
    "method_names",
    "prune",
    "prune_inputs",
    "register_method",
    "register_model",
    "supported_models",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
