"""``foveate train scorer`` as it is typed: what it makes, what it refuses, and that it may be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import foveate
import tiny_models as zoo_module
from cli import checkpoint_files as checkpoints
from cli.run_command import run
from foveate.data.loading import load
from foveate.importance import LearnedScorer
from foveate.testbed import scenes

FEW = ("--batch", 4, "--micro-batch", 2, "--learning-rate", 1e-3, "--save-every", 1)


def written(folder: Path, lines: Sequence[dict]) -> Path:
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions about three of the scenes."""
    folder, lines = tmp_path_factory.mktemp("data"), []
    for number, scene in enumerate(scenes()[:3]):
        scene.image.save(folder / f"{number}.png")
        lines += [{"image": f"{number}.png", "question": q.text, "answer": q.answer} for q in scene.questions[:4]]
    return written(folder, lines)


def test_a_scorer_for_a_shipped_model(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scorer"
    result = run("train", "scorer", "--model", "testbed-llava", "--data", data, "-o", out, *FEW)
    assert result.exit_code == 0, result.output
    assert "12 questions in 3 steps" in result.stdout
    assert LearnedScorer.load(out).hidden_size == 128
    card = json.loads((out / "training.json").read_text())
    assert (card["model"], card["keep"], card["gate"], card["samples"]) == ("testbed-llava", 0.2, "attention", 12)
    asked = run(
        "ask", data.parent / "0.png", "What colour is the sign?", "--method", "idpruner", "--set", f"scorer={out}"
    )
    assert asked.exit_code == 0, asked.output
    other = run("train", "scorer", "--model", "testbed-llava", "--data", data, "-o", out, *FEW, "--keep", "10%")
    assert other.exit_code == 2
    assert "holds a training with keep 0.2, not 0.1" in other.stderr


def test_a_scorer_for_a_block_of_an_encoder_in_half_precision(data: Path, tmp_path: Path) -> None:
    """What the last line tells to write prunes inside the encoder by the scorer that was made."""
    model, out = checkpoints.llava(tmp_path / "shapes-llava", "bfloat16"), tmp_path / "scorer"
    options = ("--at", "encoder:1", "--keep", "50%", "--teacher", "divprune", "--epochs", 0.34, *FEW)
    result = run("train", "scorer", "--model", model, "--data", data, "-o", out, *options)
    assert result.exit_code == 0, result.output
    told = result.stdout.replace("\n", "").partition("Use it with: ")[2]
    session = load(str(model))
    with torch.no_grad(), eval(told, {"foveate": foveate, "model": session.model}) as pruning:
        session.model(**session.inputs([zoo_module.picture(112, 112, 1)], "What is it?"))
    report = pruning.report()
    assert [stage.where for stage in report.stages] == [foveate.Where.INSIDE_ENCODER, foveate.Where.BEFORE_LLM]
    assert report.images[0].kept.float().mean() == 0.25
    refused = run("train", "scorer", "--model", model, "--data", data, "-o", out, *options, "--gate", "embeddings")
    assert refused.exit_code == 2 and "means nothing to a scorer inside the vision encoder" in refused.stderr


@pytest.mark.parametrize("gate", ["attention", "embeddings"])
def test_a_scorer_for_a_llava_in_half_precision(data: Path, tmp_path: Path, gate: str) -> None:
    model, out = checkpoints.llava(tmp_path / "shapes-llava", "bfloat16"), tmp_path / "scorer"
    assert load(str(model)).model.dtype == torch.bfloat16
    step = ("--epochs", 0.34, *FEW)
    result = run("train", "scorer", "--model", model, "--data", data, "-o", out, "--gate", gate, *step)
    assert result.exit_code == 0, result.output
    scorer = LearnedScorer.load(out)
    assert scorer.q_weight.dtype == torch.float32 and (scorer.q_weight.std() > 3e-4) and scorer.k_bias.isfinite().all()


def test_a_scorer_for_a_qwen_with_several_pictures(tmp_path: Path) -> None:
    model = checkpoints.qwen(tmp_path / "tiny-qwen")
    for number, size in enumerate(((112, 112), (56, 168))):
        zoo_module.picture(*size, seed=number).save(tmp_path / f"{number}.png")
    lines = [
        {"image": ["0.png", "1.png"], "question": "what is in the picture?", "answer": "a red square"},
        {"image": "1.png", "question": "what is below?", "answer": ["a circle", "a green circle"]},
    ]
    out = tmp_path / "scorer"
    result = run("train", "scorer", "--model", model, "--data", written(tmp_path, lines), "-o", out, *FEW)
    assert result.exit_code == 0, result.output
    assert LearnedScorer.load(out).hidden_size == 64
    assert json.loads((out / "training.json").read_text())["model"] == "tiny-qwen"  # no folder of this machine


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "absent.jsonl"), "absent.jsonl"),
        (("--keep", "100%"), "leaves nothing to learn"),
        (("--keep", "many"), "is not a number"),
        (("--gate", "tokens"), "gate='tokens' is unknown"),
        (("--scope", "clip"), "scope='clip' is unknown"),
        (("--model", "./absent"), "there is no model directory"),
        (("--model", "testbed-lava"), "did you mean 'testbed-llava'?"),
    ],
)
def test_what_cannot_be_is_one_sentence(data: Path, tmp_path: Path, arguments: tuple, words: str) -> None:
    options = {"--model": "testbed-llava", "--data": data, "-o": tmp_path / "out", "--samples": 8}
    options |= dict([arguments])
    result = run("train", "scorer", *(part for pair in options.items() for part in pair))
    assert result.exit_code == 2
    assert words in result.stderr.strip().splitlines()[-1]  # behind the bar, where there is one already
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def command(data: Path, out: Path, *launcher: str) -> list[str]:
    options = ("--model", "testbed-llava", "--data", data, "-o", out, "--epochs", 2, *FEW)
    return [sys.executable, *launcher, "-m", "foveate", "train", "scorer", *map(str, options)]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "scorer"
    subprocess.run(command(data, out), check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_killed_outright_and_started_again(data: Path, whole: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(data, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "checkpoint.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command(data, tmp_path), check=True, capture_output=True)
    for name in ("scorer.safetensors", "log.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(data: Path, whole: Path, tmp_path: Path) -> None:
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no"]
    subprocess.run(command(data, tmp_path, *launcher), check=True, capture_output=True)
    features = torch.randn(1, 196, 128)
    got, wanted = (LearnedScorer.load(out).scores(features)[0] for out in (tmp_path, whole))
    assert ((got - got.mean()) - (wanted - wanted.mean())).abs().max() < 0.01 * wanted.std()
