"""``foveate train evidence`` as it is typed: what it makes, what it refuses, and in several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import foveate
import tiny_models as zoo_module
from cli import checkpoint_files as checkpoints
from cli.run_command import run
from cli.test_train import written
from foveate.data.loading import load
from foveate.importance.evidence_scorer import EvidenceScorer
from foveate.testbed import scenes

FEW = ("--batch", 4, "--micro-batch", 2, "--draws", 3, "--label-steps", 1, "--answer-steps", 1, "--save-every", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions about two of the scenes, with boxes, and one without."""
    folder, lines = tmp_path_factory.mktemp("data"), []
    for number, scene in enumerate(scenes()[:2]):
        scene.image.save(folder / f"{number}.png")
        image = {"image": f"{number}.png", "boxes": [[8, 8, 40, 40]]}
        lines += [{**image, "question": q.text, "answer": q.answer} for q in scene.questions[:4]]
    return written(folder, [*lines, {"image": "0.png", "question": "Where?", "answer": "nobody knows"}])


def test_a_scorer_for_a_shipped_model(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    arguments = ("train", "evidence", "--model", "testbed-llava", "--data", data, "-o", out, *FEW)
    result = run(*arguments, "--labels", "boxes", "--skip-bad")
    assert result.exit_code == 0, result.output
    assert "Left out: line 9 (it has no boxes" in result.stderr
    assert "8 questions in 2 steps" in result.stdout
    told = result.stdout.replace("\n", "").partition("Use it with: ")[2]
    session = load("testbed-llava")
    with torch.no_grad(), eval(told, {"foveate": foveate, "model": session.model}) as pruning:
        session.model(**session.inputs([zoo_module.picture(112, 112, 1)], "What is it?"))
    assert pruning.report().stages[0].method == "evidence"
    assert EvidenceScorer.load(out).shape.base == EvidenceScorer.load(out).base[0].shape[0] > 0  # its own importance
    refused = run(*arguments, "--labels", "attention")
    assert refused.exit_code == 2 and "holds a training with labels 'boxes', not 'attention'" in refused.stderr


def test_the_recipe_for_qwen_at_tiny_size(tmp_path: Path) -> None:
    """The command of docs/guides/train_evidence.md, with fewer steps, for a random model of the same class."""
    model = checkpoints.qwen(tmp_path / "tiny-qwen")
    for number, size in enumerate(((112, 112), (56, 168))):
        zoo_module.picture(*size, seed=number).save(tmp_path / f"{number}.png")
    lines = [
        {"image": ["0.png", "1.png"], "question": "what is in the picture?", "answer": "a red square"},
        {"image": "1.png", "question": "what is below?", "answer": ["a circle", "a green circle"]},
    ]
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "train_evidence.md").read_text(encoding="utf-8")
    (command,) = [part for part in guide.split("```") if "Qwen/Qwen2.5-VL-7B-Instruct" in part]
    words = command.replace("\\\n", " ").split()
    assert words[:3] == ["foveate", "train", "evidence"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    options |= {"--model": str(model), "--data": str(written(tmp_path, lines)), "-o": str(tmp_path / "out")}
    options |= {"--label-steps": "1", "--answer-steps": "1", "--batch": "2", "--draws": "2"}
    result = run("train", "evidence", *(word for pair in options.items() for word in pair))
    assert result.exit_code == 0, result.output
    assert EvidenceScorer.load(tmp_path / "out").shape.hidden_size == 64
    card = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (card["model"], card["labels"]) == ("tiny-qwen", "attention")


def test_boxes_outside_the_picture_are_told(tmp_path: Path) -> None:
    """Such as those of another picture, or of a scale of 1000; with none of a picture nothing is to be seen."""
    zoo_module.picture(84, 112, 1).save(tmp_path / "0.png")
    asked = {"image": "0.png", "question": "What?", "answer": "this"}
    data = written(tmp_path, [{**asked, "boxes": []}, {**asked, "boxes": [[8, 8, 40, 40], [0, 84, 40, 100]]}])
    out = tmp_path / "out"
    result = run("train", "evidence", "--model", "testbed-llava", "--data", data, "-o", out, "--labels", "boxes")
    said = "line 2: its box [0, 84, 40, 100] lies outside the picture of 112 x 84 pixels; give boxes in pixels of the"
    assert result.exit_code == 2 and said in " ".join(result.stderr.split()) and not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--labels", "mouse"), "labels='mouse' is unknown; use 'boxes' or"),
        (
            ("--labels", "boxes"),
            "line 1: it has no boxes; give it some, or learn by --labels answers",
        ),
        (("--blind", 2), "must be shares"),
        (("--positives", 0), "foveate: positives=0.0 must lie between 0 and 1, such as 0.05."),
        (("--heads", 5), "heads must divide the width"),
        (("--shares", (0.5, 0.1)), "shares in rising order"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, arguments: tuple, words: str) -> None:
    zoo_module.picture(112, 112, 1).save(tmp_path / "0.png")
    data = written(tmp_path, [{"image": "0.png", "question": "What?", "answer": "this"}])
    name, value = arguments
    given = (name, *value) if isinstance(value, tuple) else (name, value)
    result = run("train", "evidence", "--model", "testbed-llava", "--data", data, "-o", tmp_path / "out", *given)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    """Questions draw by seeds of their own, so that one in each forward is drawn for alike wherever it goes."""
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no"]
    scores = []
    for name, how in (("one", []), ("two", launcher)):
        options = (
            "--model",
            "testbed-llava",
            "--data",
            data,
            "-o",
            tmp_path / name,
            "--labels",
            "boxes",
            "--skip-bad",
            *FEW,
        )
        command = [sys.executable, *how, "-m", "foveate", "train", "evidence", *map(str, options)]
        command += ["--labels", "boxes", "--micro-batch", "1"]
        subprocess.run(command, check=True, capture_output=True)
        torch.manual_seed(0)
        features, valid = torch.randn(1, 196, 128), torch.ones(1, 196, dtype=torch.bool)
        scores.append(EvidenceScorer.load(tmp_path / name).evidence(features, valid, torch.zeros(1, 196, 3).long()))
    assert (scores[0] - scores[1]).abs().max() < 0.01 * scores[0].std() + 1e-6
