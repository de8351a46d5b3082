"""The small trained models that come with foveate, by names such as ``testbed-llava``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ModelError, near_miss

DEFAULT = "testbed-llava"
_FOLDER = Path(__file__).parents[1] / "testbed" / "models"


def shipped_models() -> dict[str, Path]:
    """The name and the folder of each, for ``from_pretrained``; with its scorer and its attention prior inside."""
    return {folder.name: folder for folder in sorted(_FOLDER.glob("testbed-*"))}


def load_shipped(name: str = DEFAULT) -> tuple[Any, Any]:
    """A shipped model, in float32 and eval mode on the CPU, and its processor, which pads on the left.

    ```python
    from foveate.testbed import load_shipped

    model, processor = load_shipped()
    ```

    Raises:
        ModelError: when none has this name.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    from .fallback_processor import load_processor

    models = shipped_models()
    if name not in models:
        raise ModelError(f"no model of the name {name!r} comes with foveate{near_miss(name, models)}")
    model: Any = AutoModelForImageTextToText.from_pretrained(
        models[name], dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    processor = load_processor(str(models[name]), model, cached=True)
    processor.tokenizer.padding_side = "left"  # as generation needs it
    return model.eval(), processor
