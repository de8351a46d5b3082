"""The testbed: a tiny trained model with its scenes, and procedural scenes in any number, all offline."""

from ..data.limits import QuestionError
from .bundled import Scene, SceneQuestion, answer, answers, bundled_path, encode, fitted, load_bundled, scenes
from .procedural import generate
from .shipped import shipped_models
from .suite import samples

__all__ = [
    "QuestionError",
    "Scene",
    "SceneQuestion",
    "answer",
    "answers",
    "bundled_path",
    "encode",
    "fitted",
    "generate",
    "load_bundled",
    "samples",
    "scenes",
    "shipped_models",
]
