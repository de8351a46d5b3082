"""Suites: the questions that an evaluation asks."""

from __future__ import annotations

import functools
import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.loading import TESTBED
from ..data.samples import BadLine, Metric, Sample, usable_samples
from ..errors import FoveateError, near_miss
from ..testbed import scenes
from ..testbed.questions import FAMILIES, STILL_FAMILIES, families_seen
from ..testbed.sources import HARD
from ..testbed.suite import sample as asked_about
from ..testbed.suite import samples as generate_samples

TESTBED_QUESTIONS = 140  # twenty of each family of stills: all methods at four budgets take minutes


class EvaluationError(FoveateError, ValueError):
    """An evaluation was asked for something that does not exist, or cannot go on where it was left."""


@dataclass(frozen=True)
class Suite:
    """Samples and what they are.

    Attributes:
        name: of the suite, or the path of a folder.
        about: one sentence for readers of the results.
        samples: at least one, ids unique.
        skipped: what was left out, as it cannot be used.
    """

    name: str
    about: str
    samples: tuple[Sample, ...]
    skipped: tuple[BadLine, ...] = ()

    @property
    def families(self) -> list[str]:
        """The families asked about, sorted."""
        return sorted({sample.family for sample in self.samples})

    def digest(self) -> str:
        """A short hash of all questions, answers and pictures (of files only their names and sizes)."""
        hashed = hashlib.sha256()
        pictures: dict[int, str] = {}
        for sample in self.samples:
            for one in sample.pictures:
                if id(one) not in pictures:
                    content = f"{one.name} {one.stat().st_size}".encode() if isinstance(one, Path) else one.tobytes()
                    pictures[id(one)] = hashlib.sha256(content).hexdigest()
            shown = [pictures[id(one)] for one in sample.pictures]
            hashed.update(repr(replace(sample, pictures=(), group="")).encode() + repr(shown).encode())
        return hashed.hexdigest()[:16]


def suite(
    name: str,
    questions: int | None = None,
    seed: int = 0,
    families: Sequence[str] | None = None,
    clips: bool = False,
    per_scene: int | None = None,
) -> Suite:
    """A suite that comes with foveate.

    Args:
        name: one of `SUITES`.
        questions: how many; all that there are when None.
        seed: of the scenes, or of the choice among questions that are given.
        families: only these.
        clips: whether to ask about clips, too, where families are not named.
        per_scene: of generated scenes, at most so many questions about one; None: three of each family.

    Raises:
        EvaluationError: for an unknown suite or family.
    """
    if name not in SUITES:
        raise EvaluationError(f"unknown suite {name!r}{near_miss(name, SUITES)}")
    return SUITES[name](questions, seed, families, clips, per_scene)


def dataset(
    path: Path,
    questions: int | None = None,
    seed: int = 0,
    families: Sequence[str] | None = None,
    metric: Metric = "exact",
    suffix: str = "",
    skip_bad: bool = False,
) -> Suite:
    """The samples in a JSONL file or its folder (see `foveate.data.samples`), whose pictures can all be opened.

    Args:
        path: of the file or the folder.
        questions: at most so many; all when None.
        seed: of the choice among them.
        families: only these.
        metric: how answers are judged of which the file does not say so.
        suffix: what every question ends with.
        skip_bad: leave out what cannot be used, rather than to raise.

    Raises:
        SampleError: for a missing file, and for lines that cannot be used.
        EvaluationError: for an unknown family.
    """
    samples, bad = usable_samples(
        path, metric, suffix, skip_bad, lambda read: choose_samples(read, questions, seed, families) if read else ()
    )
    samples = [replace(sample, boxes=()) for sample in samples]  # they are for training; answers alone are judged
    name = path.resolve().name
    about = f"The questions of {name}" + (f", each with “{suffix}” behind it." if suffix else ".")
    return Suite(name, about, tuple(samples), tuple(bad))


def choose_samples(
    samples: Sequence[Sample], questions: int | None, seed: int, families: Sequence[str] | None
) -> tuple[Sample, ...]:
    """Those of some families, at most so many, drawn without replacement, in their order.

    More questions of the same seed are the same ones and others.

    Raises:
        EvaluationError: for an unknown family.
    """
    known = sorted({sample.family for sample in samples})
    for family in families or ():
        if family not in known:
            raise EvaluationError(f"unknown family {family!r}{near_miss(family, known)}")
    left = [sample for sample in samples if families is None or sample.family in families]
    if questions is not None and questions < len(left):
        # The beginning of one permutation: what `sample` draws depends on how many are drawn.
        left = [left[place] for place in sorted(random.Random(seed).sample(range(len(left)), len(left))[:questions])]
    return tuple(left)


def _scenes(
    questions: int | None, seed: int, families: Sequence[str] | None, clips: bool, per_scene: int | None
) -> Suite:
    samples = [
        asked_about(question, scene.frames, str(place), number)
        for place, scene in enumerate(scenes())
        for number, question in enumerate(scene.questions)
    ]
    left = choose_samples(samples, questions, seed, families)
    return Suite("scenes", "The twelve drawn scenes that come with foveate.", left)


def _testbed(
    questions: int | None,
    seed: int,
    families: Sequence[str] | None,
    clips: bool,
    per_scene: int | None,
    split: str = "test",
    name: str = TESTBED,
    about: str = "Generated scenes",
) -> Suite:
    asked = tuple(families or (STILL_FAMILIES if split == HARD else families_seen(clips)))
    for family in asked:
        if family not in FAMILIES:
            raise EvaluationError(f"unknown family {family!r}{near_miss(family, FAMILIES)}")
    wanted = TESTBED_QUESTIONS if questions is None else questions
    made = generate_samples(split, seed, math.ceil(wanted / len(asked)), asked, per_scene)
    return Suite(
        name,
        f"{about} of seed {seed}; none of their photographs, handwriting and words were seen in training.",
        choose_samples(made, wanted, seed, None),
    )


SUITES: dict[str, Callable[[int | None, int, Sequence[str] | None, bool, int | None], Suite]] = {
    TESTBED: _testbed,
    "testbed-hard": functools.partial(
        _testbed, split=HARD, name="testbed-hard", about="Generated scenes of small print and many like things,"
    ),
    "scenes": _scenes,
}
