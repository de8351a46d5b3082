"""Generated scenes as samples, for evaluation and training alike."""

from __future__ import annotations

from collections.abc import Sequence

from .procedural import suite
from .questions import STILL_FAMILIES
from .samples import Sample


def generated_samples(
    seed: int, per_family: int, families: Sequence[str] = STILL_FAMILIES, split: str = "test"
) -> list[Sample]:
    """Samples with exactly `per_family` questions of each family; see `foveate.testbed.procedural.suite`."""
    return [
        Sample(
            id=f"{split}-{seed}-{place}-{number}",
            question=question.text,
            answers=(question.answer,),
            pictures=scene.frames,
            video=scene.kind == "clip",
            family=question.family,
            group=f"{split}-{seed}-{place}",
            metric=question.metric,
            boxes=question.boxes,
            target=question.boxes[0][0] if question.metric == "iou" else None,
        )
        for place, scene in enumerate(suite(split, seed, per_family, families))
        for number, question in enumerate(scene.questions)
    ]
