"""The trained models of the testbed that come with foveate, by names such as ``testbed-llava``."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "models"


def shipped_models() -> dict[str, Path]:
    """The name and the folder of each, for ``from_pretrained``; with its scorer and its attention prior inside."""
    return {folder.name: folder for folder in sorted(_FOLDER.glob("testbed-*"))}
