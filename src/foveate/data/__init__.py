"""Questions, pictures and models: your own, and those of the testbed.

The names load on first use: reading samples needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generation import answer, answers
    from .images import PictureError, open_image
    from .limits import QuestionError
    from .loading import LoadedModel, load
    from .metrics import is_right
    from .prompts import Prompt, decode, encode
    from .samples import Sample, SampleError, read_samples
    from .shipped import load_shipped, shipped_models

_LAZY = {
    "LoadedModel": ".loading",
    "PictureError": ".images",
    "Prompt": ".prompts",
    "QuestionError": ".limits",
    "Sample": ".samples",
    "SampleError": ".samples",
    "answer": ".generation",
    "answers": ".generation",
    "decode": ".prompts",
    "encode": ".prompts",
    "is_right": ".metrics",
    "load": ".loading",
    "load_shipped": ".shipped",
    "open_image": ".images",
    "read_samples": ".samples",
    "shipped_models": ".shipped",
}

__all__ = [
    "LoadedModel",
    "PictureError",
    "Prompt",
    "QuestionError",
    "Sample",
    "SampleError",
    "answer",
    "answers",
    "decode",
    "encode",
    "is_right",
    "load",
    "load_shipped",
    "open_image",
    "read_samples",
    "shipped_models",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
