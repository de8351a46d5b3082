"""The search for a method and a budget, with answers made by chance in the place of a model's."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveate
from foveate.config import FILE_NAME
from foveate.data.samples import Sample
from foveate.evaluation import Evaluation, EvaluationError, evaluate, suite, tune
from foveate.evaluation.inference import COSTS, TIMES, Cell
from foveate.evaluation.storage import ANSWERS
from foveate.evaluation.suites import Suite
from foveate.evaluation.tuner import TUNED, Tuning, draw_units
from foveate.evaluation.workers import Work
from foveate.methods import get_method
from foveate.testbed import load_shipped

PAIR = load_shipped()
PICTURE = Image.new("RGB", (16, 16))
IMAGES, PER_IMAGE = 400, 2
KEPT = {"50%": 1.0, "25%": 0.99, "10%": 0.8}  # of the unpruned accuracy, by idpruner; stride keeps less


def asked(images: int = IMAGES) -> Suite:
    samples = [
        Sample(f"{one}-{n}", f"{one} {n}?", ("yes",), (PICTURE,), family="toys", group=str(one))
        for one in range(images)
        for n in range(PER_IMAGE)
    ]
    return Suite("toys", "Toys.", tuple(samples))


def wanted(images: int = IMAGES, **fields: Any) -> Evaluation:
    methods = tuple(map(get_method, ("idpruner", "stride")))
    return replace(Evaluation(asked(images), "toy", methods, tuple(KEPT)), **fields)


class Answers:
    """Answers as chance has it, the same for the same question and run; counts what it is asked."""

    def __init__(self, failing: str = "", refusing: str = "", accuracy: float = 0.9) -> None:
        self.counts: Counter[str] = Counter()
        self.failing, self.refusing, self.accuracy = failing, refusing, accuracy

    def __call__(self, work: Work, load: Any) -> Iterator[Cell]:
        for number, runs in work.todo:
            samples = [work.samples[place] for place in work.batches[number]]
            for run in runs:
                self.counts[run.key] += len(samples)
                if run.key == self.refusing:
                    yield Cell(run.key, number, None, "it cannot.", {}, {})
                    continue
                tokens = {"": 100.0}.get(run.keep) or float(run.keep.rstrip("%"))
                answers: list[str | None] = [self.answer(run.label, run.keep, one) for one in samples]
                failed = tuple((place, "broken.") for place, one in enumerate(samples) if one.id == self.failing)
                for place, _ in failed:
                    answers[place] = None
                costs = dict.fromkeys(COSTS, tokens * (len(samples) - len(failed)))
                yield Cell(run.key, number, answers, None, costs, dict.fromkeys(TIMES, 0.1), failed)

    def answer(self, label: str, keep: str, sample: Sample) -> str:
        right = _chance(sample.id) < self.accuracy
        lost = _chance(sample.id, label, keep)
        kept = KEPT.get(keep, 1.0) * (1.0 if label != "stride" else 0.8)
        return "yes" if right and lost < kept else "no"


def _chance(*words: str) -> float:
    return float(np.random.default_rng(zlib.crc32(repr(words).encode())).random())


def run(folder: Path, answers: Answers, floor: float = 0.95, **fields: Any) -> Tuning:
    return tune(wanted(**fields), load_shipped, folder, floor, loaded=PAIR, answer=answers)


def test_the_smallest_budget_that_keeps_the_floor_is_found(tmp_path: Path) -> None:
    found = run(tmp_path, Answers())
    assert found.chosen is not None and (found.chosen.method, found.chosen.keep) == ("idpruner", "25%")
    assert found.chosen.state == "shown" and found.chosen.tokens == 0.25 and found.chosen.share > 0.95
    states = {(one.method, one.keep): one.state for one in found.candidates}
    assert states["idpruner", "50%"] in ("shown", "not needed") and states["stride", "10%"] == "hopeless"
    assert found.grid == 7 * IMAGES * PER_IMAGE and found.answers < found.grid / 2
    assert found.questions == IMAGES * PER_IMAGE and found.accuracy == pytest.approx(0.9, abs=0.05)
    config = foveate.PruningConfig.from_pretrained(tmp_path)
    assert config == found.config == foveate.PruningConfig("idpruner", 0.25)
    assert json.loads((tmp_path / TUNED).read_text()) == json.loads(json.dumps(found.to_dict()))


def test_answers_are_counted_and_never_asked_twice(tmp_path: Path) -> None:
    first = Answers()
    found = run(tmp_path, first)
    assert sum(first.counts.values()) == found.answers
    for one in found.candidates:
        assert first.counts[f"{one.method}@{one.keep}"] == one.questions
    again = Answers()
    assert run(tmp_path, again) == found and not again.counts
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", _Stopping())
    lines = (tmp_path / "cut" / ANSWERS).read_text().splitlines()
    kept, rest = sum(len(json.loads(line)["answers"]) for line in lines), Answers()
    assert 400 < kept < 600 and run(tmp_path / "cut", rest) == found
    assert sum(rest.counts.values()) == found.answers - kept


class _Stopping(Answers):
    """Whoever is stopped after 500 answers."""

    def __call__(self, work: Work, load: Any) -> Iterator[Cell]:
        for cell in super().__call__(work, load):
            if cell.answers and sum(self.counts.values()) > 500 + len(cell.answers):
                raise KeyboardInterrupt
            yield cell


def test_an_evaluation_of_the_same_questions_serves_it(tmp_path: Path) -> None:
    whole = Answers()
    evaluate(wanted(images=60), load_shipped, tmp_path, loaded=PAIR, answer=whole)
    after = Answers()
    run(tmp_path, after, images=60)
    assert not after.counts
    evaluate(wanted(images=60), load_shipped, tmp_path, loaded=PAIR, answer=after)
    assert not after.counts


def test_none_is_chosen_where_none_is_sure(tmp_path: Path) -> None:
    assert run(tmp_path, Answers(), floor=0.7).chosen is not None and (tmp_path / FILE_NAME).exists()
    found = run(tmp_path, Answers(), floor=1.0)
    assert found.chosen is None and found.config is None and not (tmp_path / FILE_NAME).exists()


def test_what_cannot_run_is_told(tmp_path: Path) -> None:
    found = run(tmp_path, Answers(refusing="idpruner@25%"), unable=(("scope", "lacks something."),))
    told = {(one.method, one.keep): (one.state, one.why) for one in found.candidates}
    assert told["idpruner", "25%"] == ("refused", "it cannot.") and told["scope", ""] == ("refused", "lacks something.")
    assert found.chosen is not None and found.chosen.keep == "50%"


def test_a_question_that_cannot_be_asked_is_left_out(tmp_path: Path) -> None:
    name = asked().samples[draw_units([one.group for one in asked().samples], 0)[3][0]].id
    found = run(tmp_path, Answers(failing=name))
    assert found.chosen is not None and found.chosen.keep == "25%" and found.asked % 2 == 1
    with pytest.raises(EvaluationError, match="none of the first"):
        tune(wanted(), load_shipped, tmp_path / "none", 0.9, loaded=PAIR, answer=_Broken())


class _Broken(Answers):
    """Whoever can be asked nothing."""

    def __call__(self, work: Work, load: Any) -> Iterator[Cell]:
        for cell in super().__call__(work, load):
            assert cell.answers
            failed = tuple((place, "broken.") for place in range(len(cell.answers)))
            yield replace(cell, answers=[None] * len(cell.answers), failed=failed)


def test_images_are_drawn_with_their_questions() -> None:
    groups = [str(place // 3) for place in range(60)]
    units = draw_units(groups, 0)
    assert sorted(place for unit in units for place in unit) == list(range(60))
    assert all(len({groups[place] for place in unit}) == 1 for unit in units)
    assert units != sorted(units) and units == draw_units(groups, 0) != draw_units(groups, 1)
    assert [len(unit) for unit in draw_units(groups, 0, 2)] == [2] * 20
    assert {place % 3 for (place,) in draw_units(groups, 0, 1)} == {0, 1, 2}


def test_a_model_is_asked(tmp_path: Path) -> None:
    some = Suite("some", "Some.", tuple(one for one in suite("scenes").samples if one.group in "01234"))
    evaluation = Evaluation(some, "testbed-llava", (get_method("idpruner"),), ("50%",), max_new_tokens=4)
    found = tune(evaluation, load_shipped, tmp_path, 0.3, per_image=2, loaded=PAIR)
    assert found.chosen is not None and found.chosen.tokens == 0.5 and (tmp_path / ANSWERS).exists()
    with pytest.raises(EvaluationError, match="floor=99 must lie in"):
        tune(evaluation, load_shipped, tmp_path, 99, loaded=PAIR)
