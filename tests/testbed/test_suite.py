"""Generated scenes as samples."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from foveate.data.metrics import is_right
from foveate.testbed.procedural import generate
from foveate.testbed.questions import FAMILIES
from foveate.testbed.sources import TestbedError
from foveate.testbed.suite import samples


def test_every_family_gets_its_number() -> None:
    found = samples("validation", 1, per_family=7, families=FAMILIES)
    assert Counter(sample.family for sample in found) == dict.fromkeys(FAMILIES, 7)
    assert len({sample.id for sample in found}) == len(found)
    assert max(Counter((sample.group, sample.family) for sample in found).values()) <= 3


def test_samples_of_a_scene_stand_together() -> None:
    groups = [sample.group for sample in samples(per_family=10)]
    assert sum(a != b for a, b in pairwise(groups)) == len(set(groups)) - 1


def test_a_sample_is_its_question() -> None:
    found = samples("test", 5, per_family=4)
    for sample in found:
        split, seed, index = sample.group.split("-")
        scenes = [generate(split, int(seed), int(index), kind) for kind in (None, "objects", "chart")]
        questions = {
            (q.text, q.answer, q.boxes) for s in scenes for q in s.questions if s.frames[0] == sample.pictures[0]
        }
        assert (sample.question, sample.answers[0], sample.boxes) in questions
        assert is_right(sample, sample.answers[0]) and not is_right(sample, "no idea")
        assert sample.video is False


def test_clips_are_clips() -> None:
    found = samples("test", 5, per_family=6, families=("clips",))
    assert all(sample.video and len(sample.pictures) == len(sample.boxes) >= 4 for sample in found)


def test_the_same_numbers_give_the_same_samples() -> None:
    one, other = (samples("test", 2, per_family=5) for _ in range(2))
    assert [s.id + s.question for s in one] == [s.id + s.question for s in other]
    assert [s.id + s.question for s in one] != [s.id + s.question for s in samples("test", 3, per_family=5)]


def test_unknown_families_are_refused() -> None:
    with pytest.raises(TestbedError, match=r"unknown family 'chart'.*charts"):
        samples(per_family=1, families=("chart",))


def test_one_question_about_each_scene() -> None:
    found = samples("hard", 1, per_family=6, per_scene=1)
    assert len({sample.group for sample in found}) == len(found)
    assert set(Counter(sample.family for sample in found).values()) == {6}
