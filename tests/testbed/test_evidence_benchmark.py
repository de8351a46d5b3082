"""The benchmark of the testbed's evidence scorers: it judges as the model answers, learns, and tells what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import evidence_testbed as benchmark

from foveate.importance.evidence_scorer import EvidenceScorer
from foveate.testbed import load_shipped
from foveate.training.scorer.data import answer_losses, batch_of, example_of

NAMES = ("testbed-llava", "testbed-qwen2.5-vl")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_visual_tokens_answer_as_the_model_does(name: str, tmp_path: Path) -> None:
    asked = benchmark.ask("train", 1, 5, clips=name == NAMES[1])
    asked = [*asked[:2], *asked[-2:]]  # for Qwen2.5-VL the last are about a clip
    torch.save(benchmark.record(name, asked), tmp_path / "made.pt")
    data, frozen = benchmark.Recordings(name, [tmp_path / "made.pt"], "cpu"), benchmark.Frozen(name, "cpu")
    picks = torch.arange(data.features.shape[1]).expand(len(asked), -1)
    picks = picks.masked_fill(picks >= data.sizes[data.scene][:, None], -1)
    losses, right = frozen.judge(data, torch.arange(len(asked)), picks.flip(1))  # in whatever order they are picked
    model, processor = load_shipped(name)
    for one, loss, correct in zip(asked, losses, right, strict=True):
        inputs, labels = batch_of([example_of(processor, one)], 0)
        with torch.no_grad():
            assert loss.item() == pytest.approx(answer_losses(model, inputs, labels).item(), abs=2e-3)
            logits = model(**inputs).logits[:, -labels.shape[1] - 1 : -1]
        assert bool(correct) == bool((logits.argmax(-1) == labels).all())


@pytest.mark.slow
def test_recordings_train_a_scorer_which_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "BATCH", 3)
    made, scorer = tmp_path / "made.pt", tmp_path / "scorer.safetensors"
    benchmark.main(["record", "--scenes", "1", "--out", str(made)])
    learn = ["train", "--recordings", str(made), "--device", "cpu", "--label-steps", "2", "--steps", "2"]
    benchmark.main([*learn, "--out", str(scorer)])
    first = EvidenceScorer.load(scorer).state_dict()
    assert first["out.weight"].abs().max() > 0 and first["pull"] != 4
    benchmark.main([*learn, "--out", str(scorer)])  # anew: nothing is resumed, and everything is seeded
    again = EvidenceScorer.load(scorer).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    base = benchmark.begin("testbed-llava", benchmark.Frozen("testbed-llava", "cpu"), "cpu").state_dict()
    assert all(torch.equal(first[key], base[key]) for key in base if key.startswith("base."))
    capsys.readouterr()
    benchmark.main(["evaluate", "--recordings", str(made), "--device", "cpu", "--scorer", str(scorer), "--keep", "10%"])
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "with the question, 10%",
        "without the question, 10%",
    ]


def test_recordings_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save({"model": "testbed-llava", "features": [], "grids": [], "questions": []}, tmp_path / "made.pt")
    with pytest.raises(SystemExit, match="was recorded with testbed-llava, not with testbed-qwen"):
        benchmark.Recordings("testbed-qwen2.5-vl", [tmp_path / "made.pt"], "cpu")


@pytest.mark.slow
def test_evidence_is_learned_from_readings_of_the_model_and_averaged_over_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "BATCH", 3)
    made, plain, scorer = tmp_path / "made.pt", tmp_path / "plain.pt", tmp_path / "scorer.safetensors"
    asked = benchmark.ask("train", 1, 1, clips=False)[:3]
    torch.save(benchmark.record("testbed-llava", asked, readings=True), made)
    torch.save(benchmark.record("testbed-llava", asked), plain)
    data = benchmark.Recordings("testbed-llava", [made], "cpu")
    model, processor = load_shipped("testbed-llava")
    examples = [example_of(processor, one) for one in asked]
    valid = torch.ones(3, 196, dtype=torch.bool)
    for kind, read in benchmark.READINGS.items():
        labels = data.evidence(kind, torch.arange(3), valid)
        assert torch.equal(labels.sum(1), torch.full((3,), 10))  # 5 % of 196
        wanted = read(model, examples, 0)
        assert (wanted.masked_fill(labels, 0).amax(1) <= wanted.masked_fill(~labels, 9).amin(1) * 1.01).all()
    learn = ["train", "--device", "cpu", "--label-steps", "2", "--steps", "0", "--out", str(scorer)]
    benchmark.main([*learn, "--recordings", str(made), "--labels", "gradient"])
    assert EvidenceScorer.load(scorer).state_dict()["out.weight"].abs().max() > 0
    with pytest.raises(SystemExit, match="no gradient; make them with record --readings"):
        benchmark.main([*learn, "--recordings", str(plain), "--labels", "gradient"])
    capsys.readouterr()
    benchmark.main(["average", "--recordings", str(made), "--bank", str(plain), "--keep", "10%", "--bank-size", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"10%, {name}" for name in benchmark.CHOICES]


@pytest.mark.slow
def test_the_average_over_one_question_is_the_evidence_of_that_question(tmp_path: Path) -> None:
    torch.save(benchmark.record("testbed-llava", benchmark.ask("train", 1, 2, clips=False)), tmp_path / "made.pt")
    data, frozen = (
        benchmark.Recordings("testbed-llava", [tmp_path / "made.pt"], "cpu"),
        benchmark.Frozen(NAMES[0], "cpu"),
    )
    scorer = EvidenceScorer.load(benchmark.shipped_models()[NAMES[0]])
    row = torch.tensor([0])
    shown = data.shown(row, torch.tensor([False]), frozen.embeddings)
    once = benchmark._average(scorer, shown[:3], shown[3:])
    assert torch.allclose(once, scorer.evidence(*shown), atol=1e-5)
    thrice = benchmark._average(scorer, shown[:3], [one.expand(3, *one.shape[1:]) for one in shown[3:]])
    assert torch.allclose(thrice, once, atol=1e-5)
