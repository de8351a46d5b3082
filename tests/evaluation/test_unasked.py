"""Methods that read the text, without the question: they choose as in a prompt that has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.data import Prompt, answers
from foveate.data.prompts import encode_one
from foveate.data.samples import Sample
from foveate.errors import MethodError
from foveate.evaluation import Evaluation, evaluate, suite
from foveate.evaluation.suites import EvaluationError, Suite
from foveate.evaluation.unasked import Unasked, measure_question, reads_text
from foveate.methods import get_method, method_names
from foveate.testbed import load_shipped

QUESTIONS = ("what is the colour of the star?", "is there a red sign?")
PAIRS = {name: load_shipped(name) for name in ("testbed-llava", "testbed-qwen2.5-vl")}


def asked(*questions: str) -> list[Sample]:
    picture = suite("scenes").samples[0].pictures
    return [Sample(str(n), question, ("?",), picture) for n, question in enumerate(questions)]


def kept(pair: tuple[Any, Any], method: Any, questions: tuple[str, ...]) -> list[list[bool]]:
    """The masks of a batch about one picture."""
    prompts = [Prompt(sample.open(), sample.question) for sample in asked(*questions)]
    with foveate.prune(pair[0], method, 0.1) as pruning:
        answers(*pair, prompts, 1)
        return [image.kept.tolist() for image in pruning.report().images]


@pytest.mark.parametrize("model", PAIRS)
def test_the_question_is_found_between_the_words_of_the_template(model: str) -> None:
    processor = PAIRS[model][1]
    empty = encode_one(processor, Prompt((), ""))["input_ids"].flatten().tolist()
    for question in QUESTIONS:
        ids = encode_one(processor, Prompt((), question))["input_ids"].flatten().tolist()
        length, behind = measure_question(processor, question)
        start = len(ids) - behind - length
        read = processor.tokenizer.decode(ids[start : start + length])
        assert read.replace(" ", "") == question.replace(" ", "")
        assert ids[:start] + ids[start + length :] == empty


@pytest.mark.parametrize("question", [[7, 8], [2], [7, 2], [3], [7, 3, 4], [4, 7]])
def test_words_of_the_template_within_the_question_confuse_nothing(
    question: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(processor: Any, prompt: Prompt) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[1, 2, *map(int, prompt.question.split()), 3, 4]])}

    monkeypatch.setattr("foveate.evaluation.unasked.encode_one", encode)
    length, behind = measure_question(None, " ".join(map(str, question)))
    ids = [1, 2, *question, 3, 4]
    start = len(ids) - behind - length
    assert length == len(question) and ids[:start] + ids[start + length :] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["cdpruner", "trim", "mmtok"])
@pytest.mark.parametrize("model", PAIRS)
def test_it_chooses_as_in_a_prompt_without_a_question(model: str, name: str) -> None:
    pair = PAIRS[model]
    unasked = Unasked(name).about(pair[1], asked(*QUESTIONS))
    (expected,) = kept(pair, name, ("",))
    assert kept(pair, unasked, QUESTIONS) == [expected, expected]
    one, other = kept(pair, name, QUESTIONS)
    assert one != other


def test_a_form_of_its_own_is_used_where_a_method_has_one() -> None:
    pair, wrapped = PAIRS["testbed-llava"], Unasked("evidence")
    assert wrapped.name == "evidence without question" and not wrapped.needs
    own = kept(pair, get_method("evidence", question=False), QUESTIONS)
    assert kept(pair, wrapped.about(pair[1], asked(*QUESTIONS)), QUESTIONS) == own
    assert own[0] == own[1] != kept(pair, "evidence", QUESTIONS)[1]


def test_both_forms_are_run_and_named(tmp_path: Path) -> None:
    methods = (get_method("trim"), Unasked("trim"))
    evaluation = Evaluation(
        Suite("two", "Two.", suite("scenes").samples[:2]), "toy", methods, ("10%",), random_seeds=1, max_new_tokens=2
    )
    results = evaluate(evaluation, load_shipped, tmp_path, loaded=PAIRS["testbed-llava"])
    masks = {label: results.kept[f"{label}@10%"] for label in ("trim", "trim without question")}
    assert masks["trim"][0] != masks["trim"][1]
    assert masks["trim without question"][0] == masks["trim without question"][1]  # of one picture
    assert {run["label"] for run in results.runs} >= set(masks)


@pytest.mark.parametrize(
    ("name", "said"), [("divprune", "divprune reads no text"), ("fastv", "cannot be kept from the question")]
)
def test_methods_without_two_forms_are_refused(name: str, said: str) -> None:
    assert not reads_text(get_method(name))
    with pytest.raises(MethodError, match=said):
        Unasked(name)


def test_several_pictures_are_refused() -> None:
    two = Sample("0", "which?", ("?",), suite("scenes").samples[0].pictures * 2)
    with pytest.raises(EvaluationError, match="one picture or clip at a time"):
        Unasked("trim").about(PAIRS["testbed-llava"][1], [two])
    with pytest.raises(MethodError, match="has 0 questions, the batch has 1"):
        Unasked("trim").select(
            foveate.VisualTokens.of(torch.ones(1, 4), foveate.Grid(1, 1), text_embeddings=torch.ones(3, 4)),
            torch.tensor([1]),
        )


def test_some_methods_read_the_text() -> None:
    assert {"cdpruner", "trim", "mmtok", "eadp", "par"} <= {n for n in method_names() if reads_text(get_method(n))}
