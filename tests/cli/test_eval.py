"""``foveate eval`` and ``foveate leaderboard`` from the outside: what they write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import pytest
from commands import run
from typer.testing import Result

from foveate.testbed import scenes
from foveate.testbed.architectures import build, tokenizer
from foveate.training.testbed_export import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions about two pictures."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for number, scene in enumerate(scenes()[:2]):
        scene.image.save(folder / f"{number}.png")
        lines += [
            {"image": f"{number}.png", "question": one.question, "answer": one.answer, "family": one.family}
            for one in scene.questions[:3]
        ]
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def evaluated(folder: Path, output: Path, *arguments: object) -> Result:
    fast = ("--keep", "25%", "--max-new-tokens", "4", "--workers", "1", "--random-seeds", "1")
    return run("eval", "--dataset", folder, "-o", output, *fast, *arguments)


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("results") / "mine"
    result = evaluated(folder, output, "--methods", "idpruner,evs", "--set", "balance=0.7")
    assert result.exit_code == 0, result.output
    assert str(output / "report.md") in result.stdout.replace("\n", "") and "idpruner" in result.stdout
    return output


def test_a_folder_is_evaluated(done: Path, folder: Path) -> None:
    told = json.loads((done / "results.json").read_text())
    assert told["configuration"]["methods"]["idpruner"].count("balance=0.7") == 1
    assert str(folder) not in (done / "results.json").read_text()  # no path of this machine
    assert {run["label"] for run in told["runs"]} == {
        *("unpruned", "blind", "random", "stride", "avgpool", "downsample", "idpruner")
    }
    assert len(told["runs"][0]["answers"]) == 6 and told["runs"][0]["right"].count(1) >= 4
    text = (done / "report.md").read_text()
    assert "| evs | 25% | evs compares the frames of clips" in text and "| idpruner | 49.0 |" in text
    assert all((done / name).is_file() for name in ("accuracy_tokens.png", "accuracy_time.png", "families.png"))


def test_it_goes_on_and_refuses_another(done: Path, folder: Path) -> None:
    before = (done / "results.json").read_bytes()
    again = evaluated(folder, done, "--methods", "idpruner,evs", "--set", "balance=0.7")
    assert again.exit_code == 0 and (done / "results.json").read_bytes() == before
    assert_one_sentence(evaluated(folder, done, "--methods", "idpruner"), "holds another evaluation", "methods:")


def test_the_leaderboard_is_made_of_results(done: Path, tmp_path: Path) -> None:
    page = tmp_path / "leaderboard.md"
    result = run("leaderboard", done.parent, "-o", page)
    assert result.exit_code == 0, result.output
    assert "Model bundled, suite questions" in page.read_text()
    assert_one_sentence(run("leaderboard", tmp_path / "none", "-o", page), "there are no results", "foveate eval")


def test_the_gate(tmp_path: Path) -> None:
    """The bundled model does not know the words of the testbed; one that does not either answers at random."""
    model = tmp_path / "untrained"
    export(build("llava", 0), tokenizer("llava"), "llava", model, {"seed": 0})
    asked = ("--suite", "testbed", "--questions", 7, "--keep", "25%", "--methods", "stride", "--random-seeds", 1)
    result = run("eval", *asked, "--gate", "--model", model, "--workers", 1, "-o", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert "The gate is not passed:" in result.stdout and "macro accuracy is" in result.stdout


def test_all_lists_what_cannot_be_made(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.methods.method_names", lambda: ["divprune", "visionselector"])
    monkeypatch.setattr("foveate.evaluation.plots.draw", lambda report, folder: [])
    result = evaluated(folder, tmp_path / "out", "--questions", 1)
    assert result.exit_code == 0, result.output
    assert "| visionselector | 25% | visionselector: needs a trained scorer" in (tmp_path / "out/report.md").read_text()


def test_a_checkpoint_with_a_chat_template(folder: Path, tmp_path: Path, done: Path) -> None:
    """The bundled model by another name answers as it does."""
    model = checkpoints.llava(tmp_path / "shapes-llava")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    result = evaluated(folder, tmp_path / "out", "--methods", "stride", "--model", model)
    assert result.exit_code == 0, result.output
    mine, other = (json.loads((path / "results.json").read_text()) for path in (tmp_path / "out", done))
    assert mine["configuration"]["model"] == "shapes-llava"
    unpruned, blind = ([run for run in told["runs"] if not run["keep"]] for told in (mine, other))
    assert [run["answers"] for run in unpruned] == [run["answers"] for run in blind]


def test_bad_requests_end_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    assert_one_sentence(run("eval", *out), "--suite", "--dataset")
    assert_one_sentence(run("eval", "--suite", "bundled", "--dataset", folder, *out), "either")
    assert_one_sentence(run("eval", "--suite", "bundled", "--gate", *out), "give --suite testbed")
    assert_one_sentence(run("eval", "--suite", "bundeld", *out), "did you mean 'bundled'")
    assert_one_sentence(run("eval", "--suite", "bundled", "--families", "cuont", *out), "did you mean 'count'")
    assert_one_sentence(evaluated(tmp_path / "none", tmp_path / "out"), "no file or folder")
    assert_one_sentence(evaluated(folder, tmp_path / "out", "--methods", "idprune"), "did you mean 'idpruner'")
    assert_one_sentence(evaluated(folder, tmp_path / "out", "--methods", ","), "--methods names nothing")
    assert_one_sentence(evaluated(folder, tmp_path / "out", "--methods", "visionselector"), "needs a trained scorer")
    assert_one_sentence(evaluated(folder, tmp_path / "out", "--methods", "stride", "--set", "seed=1"), "seed")
    for keep in ("150%", "abc", "auto", "100%", ","):
        assert_one_sentence(run("eval", "--suite", "bundled", f"--keep={keep}", *out), "keep")
    against = ("--methods", "divprune", "--against", "fastv")
    assert_one_sentence(run("eval", "--suite", "bundled", *against, *out), "--against fastv is not among")
    assert_one_sentence(run("eval", "--suite", "bundled", "--against", "blind", *out), "--against blind is not among")
    assert_one_sentence(run("eval", "--suite", "bundled", "--model", tmp_path / "gone", *out), "gone")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert_one_sentence(run("eval", "--suite", "bundled", "--model", tmp_path / "bert", *out), "'bert'")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"image": "none.png", "question": "q", "answer": "a"}\n')
    assert_one_sentence(evaluated(bad, tmp_path / "out"), "bad.jsonl, line 1", "none.png")
    assert not (tmp_path / "out").exists()


def test_what_is_named_twice_runs_once(folder: Path, tmp_path: Path) -> None:
    twice = ("--methods", "stride,stride", "--keep", "25%,0.25", "--random-seeds", "1", "--against", "random")
    result = run("eval", "--dataset", folder, "--questions", 2, *twice, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert told["configuration"]["keep"] == ["25%"]
    assert [run["label"] for run in told["runs"] if run["keep"]].count("stride") == 1
    assert "minus random" in (tmp_path / "out" / "report.md").read_text()


def test_a_word_that_the_model_does_not_know_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    file = folder / "other.txt"
    file.write_text('{"image": "0.png", "question": "what is this?", "answer": "a"}\n')
    assert_one_sentence(evaluated(file, tmp_path / "out"), "does not know the word 'what'")


def assert_one_sentence(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("foveate: ") and "Traceback" not in result.output
    for word in words:
        assert word in lines[-1]
