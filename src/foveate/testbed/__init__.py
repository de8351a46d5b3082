"""The testbed: small trained models, scenes that come with them, and generated scenes in any number, all offline."""

from ..data.shipped import load_shipped, shipped_models
from .procedural import Scene, generate
from .questions import Question
from .shipped import scenes
from .suite import samples

__all__ = ["Question", "Scene", "generate", "load_shipped", "samples", "scenes", "shipped_models"]
