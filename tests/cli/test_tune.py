"""``foveate tune`` from the outside: what it says, writes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import foveate
from cli.run_command import assert_one_sentence, run
from foveate.cli.tune import _show
from foveate.evaluation.tuner import Candidate, Tuning
from foveate.testbed import scenes

FAST = ("--max-new-tokens", "4", "--methods", "idpruner,evs", "--budgets", "50%")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question about each of twelve pictures."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for number, scene in enumerate(scenes()):
        scene.image.save(folder / f"{number}.png")
        one = scene.questions[0]
        lines.append({"image": f"{number}.png", "question": one.text, "answer": one.answer})
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_a_choice_is_written(folder: Path, tmp_path: Path) -> None:
    result = run("tune", "--dataset", folder, "--floor", "40%", "-o", tmp_path, *FAST)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "idpruner at 50% keeps 40 % of the unpruned accuracy, at 95 % confidence." in said
    assert "Not in the table: evs" in said and "chosen" in said
    config = foveate.PruningConfig.from_pretrained(tmp_path)
    assert config == foveate.PruningConfig("idpruner", 0.5)
    again = run("tune", "--dataset", folder, "--floor", "0.4", "-o", tmp_path, *FAST, "--json")
    told = json.loads(again.stdout)
    assert told["config"] == config.to_dict() and told["chosen"]["state"] == "shown"
    assert told == json.loads((tmp_path / "tune.json").read_text())


def test_no_choice_is_an_exit_code(folder: Path, tmp_path: Path) -> None:
    result = run("tune", "--dataset", folder, "-o", tmp_path, *FAST)  # twelve pictures show no 99 %
    assert result.exit_code == 1, result.output
    assert "No budget keeps 99 % at 95 % confidence: keep all tokens." in " ".join(result.stdout.split())
    assert not (tmp_path / "foveate_config.json").exists()


def outcome(floor: float, *candidates: Candidate) -> Tuning:
    """A search of one question in which nothing was sure."""
    return Tuning(floor, 0.95, 1, 1, 2, 2, 1.0, candidates)


def test_a_model_that_knows_no_answer_has_nothing_to_keep(capsys: pytest.CaptureFixture[str]) -> None:
    _show(replace(outcome(0.99, Candidate("a", "50%", "hopeless", 1, None, 0.5)), accuracy=0.0), Path("out"))
    said = " ".join(capsys.readouterr().out.split())
    assert "│ 1 │ nothing to keep" in said and "The unpruned model answered none of the questions as expected;" in said


def test_what_a_few_questions_cannot_show_is_not_called_bad(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Candidate("a", "50%", "hopeless", 1, 1.0, 0.5), Candidate("b", "25%", "hopeless", 1, 0.5, 0.25)
    _show(outcome(0.99, good, bad), Path("out"))
    said = " ".join(capsys.readouterr().out.split())
    assert "100.0 % │ 1 │ too few questions" in said and "50.0 % │ 1 │ loses too much" in said
    assert "Asked 1 of 1 question, 2 answers: 100% of those" in said and "hopeless" not in said
    assert "a at 50% kept 100.0 % on 1 question, too few to be sure; give more questions, about more images" in said
    _show(outcome(1.0, good, bad), Path("out"))  # answers that are all alike never show a floor of 100 %
    said = " ".join(capsys.readouterr().out.split())
    assert "on 1 question, but 100 % is shown only by answering better than unpruned; give a --floor such" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--suite", "testbed", "--floor", "101%"), "--floor 101% is not a share"),
        (("--suite", "testbed", "--floor", " "), "--floor '' is not a share between 0 and 1; write it as 99% or 0.99."),
        (("--suite", "testbed", "--confidence", "100%"), "--confidence 100% is not a share"),
        ((), "give either --dataset FILE"),
        (("--suite", "testbed", "--methods", "nobody"), "unknown method 'nobody'"),
        (("--suite", "testbed", "--budgets", "100%"), "compares equal budgets below 100%"),
        (("--suite", "testbed", "--budgets", "1.0"), "foveate: a budget of 1.0 keeps everything"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert_one_sentence(run("tune", "-o", tmp_path / "new", *arguments), said)
    assert not (tmp_path / "new").exists()
