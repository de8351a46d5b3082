"""Questions of generated scenes as samples: what evaluation asks, and what scorers learn from."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..data.samples import Sample
from ..errors import near_miss
from .procedural import generate
from .questions import FAMILIES, STILL_FAMILIES, Question
from .sources import TestbedError

_PER_SCENE = 3  # questions of one family about one scene, at most
_CLIP_EVERY = 5  # scenes, where clips are wanted among others


def samples(
    split: str = "test",
    seed: int = 0,
    per_family: int = 250,
    families: Sequence[str] = STILL_FAMILIES,
    per_scene: int | None = None,
) -> list[Sample]:
    """Exactly `per_family` questions of each family, those of a scene behind each other.

    The same arguments give the same samples. A sample's group is its scene, and its boxes tell where the things asked
    about are. Where a box is asked for, the answer is written in steps of 4 pixels. With `per_scene`, at most so many
    questions are about one scene, those first whose families lack most; else at most three of each family.

    Raises:
        TestbedError: for an unknown family, or when scikit-image, scikit-learn or matplotlib is missing.
    """
    for family in families:
        if family not in FAMILIES:
            raise TestbedError(f"unknown family {family!r}{near_miss(family, FAMILIES)}")
    missing = dict.fromkeys(families, per_family)
    found: list[Sample] = []
    index = 0
    while any(missing.values()):
        scene = generate(split, seed, index, _kind(missing, index))
        taken: dict[str, list[Question]] = {}
        asked = list(scene.questions)
        if per_scene is not None:
            asked.sort(key=lambda question: -missing.get(question.family, 0))
        before = len(found)
        for question in asked:
            if len(found) - before == per_scene:
                break
            of_family = taken.setdefault(question.family, [])
            known = any(question.boxes == other.boxes and question.answer == other.answer for other in of_family)
            if missing.get(question.family, 0) and len(of_family) < _PER_SCENE and not known:
                missing[question.family] -= 1
                of_family.append(question)
                found.append(sample(question, scene.frames, f"{split}-{seed}-{index}", len(found)))
        index += 1
    return found


def _kind(missing: dict[str, int], index: int) -> str | None:
    """Which kind of scene comes next, if not any still."""
    wanted = {family for family, number in missing.items() if number}
    if wanted == {"clips"} or ("clips" in wanted and index % _CLIP_EVERY == 0):
        return "clip"
    if wanted <= {"charts", "clips"}:
        return "chart"
    return "objects" if wanted.isdisjoint({"charts", "reading"}) else None


def sample(question: Question, frames: Sequence[Image.Image], group: str, number: int) -> Sample:
    """A question about frames as a sample."""
    return Sample(
        id=f"{group}-{number}",
        question=question.text,
        answers=(question.answer,),
        pictures=tuple(frames),
        video=len(frames) > 1,
        family=question.family,
        group=group,
        metric=question.metric,
        boxes=question.boxes,
    )
