"""Folders of evaluations that grow, shrink, meet bad questions and other processes: what is asked, and what is kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.data.samples import Sample
from foveate.evaluation.advice import advice
from foveate.evaluation.conflicts import find_conflict
from foveate.evaluation.fingerprints import hash_processor, question_keys
from foveate.evaluation.inference import Examinee
from foveate.evaluation.report import Report
from foveate.evaluation.results import RESULTS, Results
from foveate.evaluation.runner import Evaluation, evaluate
from foveate.evaluation.runs import Run
from foveate.evaluation.storage import ANSWERS, QUESTIONS, lock_folder
from foveate.evaluation.suites import EvaluationError, Suite, suite
from foveate.methods import get_method
from foveate.testbed import load_shipped

PAIR = load_shipped()
# without boxes, with which the oracle would be asked, too
SAMPLES = tuple(dataclasses.replace(sample, boxes=()) for sample in suite("scenes").samples)


def evaluation(samples: Sequence[Sample], methods: Sequence[str], keeps: Sequence[str], **fields: Any) -> Evaluation:
    defaults: dict[str, Any] = {"batch": 4, "max_new_tokens": 4, "random_seeds": 1, "workers": 1}
    made = tuple(map(get_method, methods))
    return Evaluation(Suite("some", "Some.", tuple(samples)), "testbed-llava", made, tuple(keeps), **defaults | fields)


class Watch:
    """Evaluates, and counts the answers that were asked for: (run, question)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.asked = folder, []
        original = Examinee._answer

        def answered(examinee: Examinee, run: Run, samples: Sequence[Sample], group: Any) -> Any:
            self.asked += [(run.key, sample.question) for sample in samples]
            return original(examinee, run, samples, group)

        monkeypatch.setattr(Examinee, "_answer", answered)

    def __call__(self, *args: Any, **fields: Any) -> Results:
        self.asked.clear()
        return evaluate(evaluation(*args, **fields), load_shipped, self.folder, loaded=PAIR)


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(tmp_path / "grown", monkeypatch)


def answers_of(results: Results) -> dict[str, list[str]]:
    return {Run(run["label"], run["keep"], seed=run["seed"]).key: run["answers"] for run in results.runs}


@pytest.mark.slow
def test_it_grows_by_all_that_there_is(watch: Watch, tmp_path: Path) -> None:
    """By methods, budgets and questions; only what is new is asked, and the end is as if all had been asked at once."""
    watch(SAMPLES[:6], ["divprune"], ["25%"])
    assert len(watch.asked) == 6 * 7
    watch(SAMPLES[:6], ["divprune", "fastv"], ["25%"])
    assert {run for run, _ in watch.asked} == {"fastv@25%"} and len(watch.asked) == 6
    watch(SAMPLES[:6], ["divprune", "fastv"], ["25%", "10%"])
    assert all(run.endswith("@10%") for run, _ in watch.asked) and len(watch.asked) == 6 * 6
    grown = watch(SAMPLES[:9], ["divprune", "fastv"], ["25%", "10%"])
    assert {question for _, question in watch.asked} == {sample.question for sample in SAMPLES[6:9]}
    assert len(watch.asked) == 3 * 14
    watch(SAMPLES[:9], ["divprune", "fastv"], ["25%", "10%"])
    assert not watch.asked
    at_once = evaluate(
        evaluation(SAMPLES[:9], ["divprune", "fastv"], ["25%", "10%"]), load_shipped, tmp_path / "once", loaded=PAIR
    )
    assert answers_of(grown) == answers_of(at_once)
    assert [list(run) for run in grown.runs] == [list(run) for run in at_once.runs]
    assert grown.samples == at_once.samples and Report(grown).accuracy("10%") == Report(at_once).accuracy("10%")
    for run, other in zip(grown.runs, at_once.runs, strict=True):
        assert run["costs"] == pytest.approx(other["costs"])


def test_what_is_not_named_stays(watch: Watch) -> None:
    watch(SAMPLES[:4], ["divprune"], ["25%"])
    both = watch(SAMPLES[:4], ["fastv"], ["10%"])
    keys = set(answers_of(both))
    assert {"divprune@25%", "fastv@10%", "random#0@25%"} <= keys and "divprune@10%" not in keys
    assert both.configuration["keep"] == ["10%", "25%"] and set(both.configuration["methods"]) == {"divprune", "fastv"}
    more = watch(SAMPLES[:5], ["fastv"], ["10%"])
    assert "divprune@25%" not in answers_of(more)
    (entry,) = [one for one in more.refused if one["label"] == "divprune"]
    assert entry["keep"] == "25%" and "its answers to 4 of 5 questions; name it again" in entry["why"]
    watch(SAMPLES[:5], ["divprune"], ["25%"])
    assert {question for _, question in watch.asked} == {SAMPLES[4].question}


def test_a_removed_question_takes_nothing_along(watch: Watch) -> None:
    whole = watch(SAMPLES[:7], ["divprune"], ["25%"])
    left = watch([*SAMPLES[:2], *SAMPLES[3:7]], ["divprune"], ["25%"])
    assert not watch.asked
    for key, answers in answers_of(whole).items():
        assert answers_of(left)[key] == [*answers[:2], *answers[3:]]
    assert left.rows()[0].costs["visual_tokens"] == 196
    watch(SAMPLES[:7][::-1], ["divprune"], ["25%"])  # nor does another order
    assert not watch.asked


def test_answers_are_judged_anew(watch: Watch) -> None:
    """Accepted answers and ways of judging are no part of what was asked."""
    before = watch(SAMPLES[:4], ["divprune"], ["25%"])
    said = answers_of(before)["unpruned"]
    samples = [
        dataclasses.replace(sample, answers=(f"{answer}",), metric="contains", family="new")
        for sample, answer in zip(SAMPLES[:4], said, strict=True)
    ]
    after = watch(samples, ["divprune"], ["25%"])
    assert not watch.asked and after.runs[0]["right"] == [1, 1, 1, 1]
    other = [dataclasses.replace(sample, question="how many stars are there?") for sample in SAMPLES[:4]]
    watch(other, ["divprune"], ["25%"])
    assert len(watch.asked) == 4 * 7


def test_the_same_question_twice(watch: Watch) -> None:
    keys = question_keys([SAMPLES[0], SAMPLES[1], SAMPLES[0]])
    assert len(set(keys)) == 3 and keys[2].startswith(keys[0])
    results = watch([SAMPLES[0], SAMPLES[1], dataclasses.replace(SAMPLES[0], id="again")], ["divprune"], ["25%"])
    assert all(answers[0] == answers[2] for answers in answers_of(results).values())


def test_a_picture_is_its_content(tmp_path: Path) -> None:
    picture = SAMPLES[0].open()[0]
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name)
    one, other = (dataclasses.replace(SAMPLES[0], pictures=(tmp_path / name,)) for name in ("a.png", "b.png"))
    assert question_keys([one]) == question_keys([other])
    picture.rotate(90).save(tmp_path / "b.png")
    assert question_keys([one]) != question_keys([other])


def test_what_cannot_be_asked_is_left_out(watch: Watch) -> None:
    """Named, counted and asked again the next time; the others are answered as without it."""
    bad = dataclasses.replace(SAMPLES[1], question="what is <image>?", id="bad", where="line 2")
    good = [SAMPLES[0], *SAMPLES[2:5]]
    results = watch([SAMPLES[0], bad, *SAMPLES[2:5]], ["divprune"], ["25%"])
    (entry,) = results.failed
    assert entry["where"] == "line 2" and "the question holds '<image>'" in entry["why"]
    assert [sample["id"] for sample in results.samples] == [sample.id for sample in good]
    assert all(len(run["answers"]) == len(run["right"]) == 4 for run in results.runs)
    assert results.rows()[0].costs["visual_tokens"] == 196 and Results.load(watch.folder) == results
    text = Report(results).text()
    assert (
        "4 questions about" in text and "1 more failed (see the end)" in text and "line 2 | the question holds" in text
    )
    again = watch([SAMPLES[0], bad, *SAMPLES[2:5]], ["divprune"], ["25%"])
    assert not watch.asked and again.failed == results.failed  # it fails before any model runs
    mended = watch(SAMPLES[:5], ["divprune"], ["25%"])
    assert {question for _, question in watch.asked} == {SAMPLES[1].question} and not mended.failed
    assert answers_of(watch(good, ["divprune"], ["25%"])) == answers_of(results)


def test_a_run_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no refusal, such as memory that is too small, is tried with one question at a time, and then told of."""
    original, poor = Examinee._answer, SAMPLES[2].question

    def answered(examinee: Examinee, run: Run, samples: Sequence[Sample], group: Any) -> Any:
        if run.label == "divprune" and len(samples) > 1:
            raise torch.OutOfMemoryError("out of memory")
        if run.label == "fastv" and any(sample.question == poor for sample in samples):
            raise ValueError("odd\npicture")
        return original(examinee, run, samples, group)

    monkeypatch.setattr(Examinee, "_answer", answered)
    results = evaluate(evaluation(SAMPLES[:4], ["divprune", "fastv"], ["25%"]), load_shipped, tmp_path, loaded=PAIR)
    assert len(answers_of(results)["divprune@25%"]) == 4 and not results.failed
    (entry,) = results.refused
    assert (
        entry["label"] == "fastv"
        and entry["why"] == f"failed at 1 of 4 questions; {SAMPLES[2].id}: ValueError: odd picture"
    )
    monkeypatch.undo()
    mended = evaluate(evaluation(SAMPLES[:4], ["fastv"], ["25%"]), load_shipped, tmp_path, loaded=PAIR)
    assert "fastv@25%" in answers_of(mended)


def test_where_nothing_can_be_asked_it_ends_soon(tmp_path: Path) -> None:
    bad = [dataclasses.replace(SAMPLES[0], question=f"<image> {n}", where=f"line {n}") for n in range(30)]
    with pytest.raises(EvaluationError, match=r"none of the 2 questions could be asked\. line 0: the question holds"):
        evaluate(evaluation(bad[:2], [], ["25%"]), load_shipped, tmp_path / "few", loaded=PAIR)
    with pytest.raises(EvaluationError, match="none of the first 20 questions could be asked"):
        evaluate(evaluation(bad, [], ["25%"]), load_shipped, tmp_path / "many", loaded=PAIR)


def test_a_folder_of_an_older_foveate_goes_on(watch: Watch) -> None:
    """Its lines name batches only, which are those of the same questions."""
    first = watch(SAMPLES[:6], ["divprune"], ["25%"])
    (watch.folder / QUESTIONS).unlink()
    lines = (watch.folder / ANSWERS).read_text().splitlines(keepends=True)
    (watch.folder / ANSWERS).write_text("".join(lines[:-3]))
    with pytest.raises(EvaluationError, match="was begun by an older foveate"):
        watch(SAMPLES[:7], ["divprune"], ["25%"])
    again = watch(SAMPLES[:6], ["divprune"], ["25%"])
    assert len(watch.asked) == 3 * 2 and answers_of(again) == answers_of(first)
    watch(SAMPLES[:7], ["divprune"], ["25%"])


def test_what_could_not_run_may_later(watch: Watch) -> None:
    """A method that was refused for lack of something has no answers that other settings would contradict."""
    first = watch(SAMPLES[:2], ["evs"], ["25%"])
    assert [one["label"] for one in first.refused] == ["evs"]
    path = watch.folder / "configuration.json"
    entry = json.loads(path.read_text())
    entry["methods"]["evs"] = "EVS(other=1)"
    path.write_text(json.dumps(entry))
    again = watch(SAMPLES[:2], ["evs"], ["25%"])
    assert {run for run, _ in watch.asked} == {"evs@25%"} and again.refused == first.refused


def test_answers_that_are_damaged_can_be_done_without(watch: Watch) -> None:
    watch(SAMPLES[:2], [], ["25%"])
    (watch.folder / ANSWERS).write_text('{"run": "unpruned", "batch": 0}\n')
    with pytest.raises(EvaluationError, match=r"answers\.jsonl is damaged; delete it to evaluate anew"):
        watch(SAMPLES[:2], [], ["25%"])
    (watch.folder / ANSWERS).unlink()
    watch(SAMPLES[:2], [], ["25%"])
    assert len(watch.asked) == 2 * 6


def test_two_at_once_are_one_too_many(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(EvaluationError, match="another evaluation is at work in"):
        evaluate(evaluation(SAMPLES[:2], [], ["25%"]), load_shipped, tmp_path, loaded=PAIR)
    assert not list(tmp_path.iterdir())
    with lock_folder(tmp_path):
        pass


def test_conflicts_can_be_read() -> None:
    def difference(**changes: Any) -> str | None:
        there = {"foveate": "1", "torch": "2", "model": "a", "weights": "x", "batch": 1, "max_new_tokens": 4}
        there |= {"methods": {"m": "M(a=1, b=(1, 2), text='...............................', c=0.5)"}, "learned": {}}
        return find_conflict(there, there | changes, ["m"])

    assert difference() is difference(model="b") is difference(questions=3, keep=["5%"], digest="z", seed=1) is None
    assert difference(preparation="new") is difference(methods={"n": "N()"}) is None
    assert difference(model="b", weights="y") == 'model: "a" there, "b" here'
    assert difference(weights="y") == 'weights: "x" there, "y" here'
    changed = {"m": "M(a=1, b=(1, 3), text='...............................', c=0.5, d=None)"}
    assert difference(methods=changed) == "methods: m has b=(1, 2) there, b=(1, 3), d=None here"
    learned = difference(learned={"m": "abc"})
    assert learned == 'learned: m, its scorer or prior, has null there, "abc" here'
    long = {"m": "M(a=" + "x" * 200 + "1)"}, {"m": "M(a=" + "x" * 200 + "2)"}
    said = find_conflict({"methods": long[0]}, {"methods": long[1]}, ["m"])
    assert said is not None and "1 there" in said and "2 here" in said and len(said) < 160


def test_what_a_processor_does_is_told_apart() -> None:
    class Images:
        def __init__(self, pixels: int) -> None:
            self.pixels = pixels

        def to_dict(self) -> dict[str, int]:
            return {"max_pixels": self.pixels}

    class Processor:
        chat_template = None

        def __init__(self, pixels: int) -> None:
            self.image_processor = Images(pixels)

    assert hash_processor(Processor(1)) == hash_processor(Processor(1)) != hash_processor(Processor(2))


def test_long_answers_are_told_of() -> None:
    """A model that answers in sentences is never right by "exact"."""

    def results(answers: list[str], metric: str = "exact") -> Results:
        samples = [{"metric": metric, "answers": ["cat"]}] * len(answers)
        right = [int(answer == "cat") for answer in answers]
        return Results({}, samples, [{"label": "unpruned", "answers": answers, "right": right}], [])

    (said,) = advice(results(["It is a cat, I think."] * 3 + ["It is a dog, I think."]))
    assert said.startswith("Only 0 of 4 answers") and "3 hold one" in said and "--metric contains" in said
    assert len(advice(results(["The picture shows some animal."] * 4))) == 1
    assert not advice(results(["dog"] * 4)) and not advice(results(["cat", "a cat"]))
    assert not advice(results(["It is a cat."] * 4, "contains"))


def test_committed_results_are_read() -> None:
    """Whatever a folder may hold today, results of before mean what they meant."""
    folder = Path(__file__).parents[2] / "results" / "testbed-llava"
    results = Results.load(folder)
    number, seed = len(results.samples), results.configuration["seed"]
    assert results.configuration["digest"] == suite("testbed", number, seed).digest() and not results.failed
    assert "skipped" not in json.loads((folder / RESULTS).read_text())
