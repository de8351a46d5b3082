"""The bundled testbed: a tiny trained model and the scenes that it answers questions about, all offline."""

from .bundled import (
    QuestionError,
    Scene,
    SceneQuestion,
    answer,
    answers,
    bundled_path,
    encode,
    fitted,
    load_bundled,
    scenes,
)

__all__ = [
    "QuestionError",
    "Scene",
    "SceneQuestion",
    "answer",
    "answers",
    "bundled_path",
    "encode",
    "fitted",
    "load_bundled",
    "scenes",
]
