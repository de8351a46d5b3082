"""``foveate eval`` and ``foveate leaderboard`` from the outside: what they write and refuse."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import Result

from cli import checkpoint_files as checkpoints
from cli.run_command import run
from foveate.cli.eval_output import Estimate, show
from foveate.evaluation.report import Report
from foveate.evaluation.results import Results
from foveate.testbed import scenes
from foveate.testbed.architectures import build, tokenizer
from foveate.training.testbed.export import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions about two pictures."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for number, scene in enumerate(scenes()[:2]):
        scene.image.save(folder / f"{number}.png")
        lines += [
            {"image": f"{number}.png", "question": one.text, "answer": one.answer, "family": one.family}
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
    assert "images are too few to tell apart methods that are close." in result.stdout
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
    page = (done / "report.html").read_text()
    assert page.count('<script type="text/plain" id="picture-') == 2 and str(folder) not in page


def test_it_goes_on_and_refuses_another(done: Path, folder: Path) -> None:
    before = (done / "results.json").read_bytes()
    again = evaluated(folder, done, "--methods", "idpruner,evs", "--set", "balance=0.7")
    assert again.exit_code == 0 and (done / "results.json").read_bytes() == before
    assert_one_sentence(evaluated(folder, done, "--methods", "idpruner"), "holds another evaluation", "methods:")


def test_the_shipped_scenes_are_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the default model, with the oracle, and without what drawing scenes needs."""
    monkeypatch.setattr("foveate.testbed.sources.import_module", lambda name: pytest.fail(f"needs {name}"))
    few = ("--questions", 4, "--keep", "25%", "--methods", "stride", "--random-seeds", 1, "--workers", 1)
    result = run("eval", "--suite", "scenes", *few, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert told["configuration"]["model"] == "testbed-llava" and len(told["samples"]) == 4
    assert "oracle" in {run["label"] for run in told["runs"]}


def test_the_leaderboard_is_made_of_results(done: Path, tmp_path: Path) -> None:
    page = tmp_path / "leaderboard.md"
    result = run("leaderboard", done.parent, "-o", page)
    assert result.exit_code == 0, result.output
    assert "Model testbed-llava, suite questions" in page.read_text()
    assert_one_sentence(run("leaderboard", tmp_path / "none", "-o", page), "there are no results", "foveate eval")


@pytest.mark.slow
def test_the_gate(tmp_path: Path) -> None:
    """One that was not trained answers at random."""
    model = tmp_path / "untrained"
    export(build("llava", 0), tokenizer("llava"), "llava", model, {"seed": 0})
    asked = ("--suite", "testbed", "--questions", 7, "--keep", "25%", "--methods", "stride", "--random-seeds", 1)
    result = run("eval", *asked, "--gate", "--model", model, "--workers", 1, "-o", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert "The gate is not passed:" in result.stdout and "macro accuracy is" in result.stdout


def test_all_lists_what_cannot_be_made(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.methods.method_names", lambda: ["divprune", "visionselector"])
    monkeypatch.setattr("foveate.evaluation.plots.draw", lambda report, folder, formats: [])
    bare = checkpoints.llava(tmp_path / "bare")
    result = evaluated(folder, tmp_path / "out", "--questions", 1, "--model", bare)
    assert result.exit_code == 0, result.output
    assert "| visionselector | 25% | visionselector: needs a trained scorer" in (tmp_path / "out/report.md").read_text()


def test_a_checkpoint_with_a_chat_template(folder: Path, tmp_path: Path, done: Path) -> None:
    """The default model by another name answers as it does."""
    model = checkpoints.llava(tmp_path / "shapes-llava")
    result = evaluated(folder, tmp_path / "out", "--methods", "stride", "--model", model)
    assert result.exit_code == 0, result.output
    mine, other = (json.loads((path / "results.json").read_text()) for path in (tmp_path / "out", done))
    assert mine["configuration"]["model"] == "shapes-llava"
    unpruned, blind = ([run for run in told["runs"] if not run["keep"]] for told in (mine, other))
    assert [run["answers"] for run in unpruned] == [run["answers"] for run in blind]


def test_bad_requests_end_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    assert_one_sentence(run("eval", *out), "--suite", "--dataset")
    assert_one_sentence(run("eval", "--suite", "scenes", "--dataset", folder, *out), "either")
    assert_one_sentence(run("eval", "--suite", "scenes", "--gate", *out), "give --suite testbed")
    assert_one_sentence(run("eval", "--suite", "scnes", *out), "did you mean 'scenes'")
    assert_one_sentence(run("eval", "--suite", "scenes", "--families", "couting", *out), "did you mean 'counting'")
    assert_one_sentence(evaluated(tmp_path / "none", tmp_path / "out"), "no file or folder")
    assert_one_sentence(evaluated(folder, tmp_path / "out", "--methods", "idprune"), "did you mean 'idpruner'")
    assert_one_sentence(evaluated(folder, tmp_path / "out", "--methods", ","), "--methods names nothing")
    bare = ("--methods", "visionselector", "--model", checkpoints.llava(tmp_path / "bare"))
    assert_one_sentence(evaluated(folder, tmp_path / "out", *bare), "needs a trained scorer")
    assert_one_sentence(evaluated(folder, tmp_path / "out", "--methods", "stride", "--set", "seed=1"), "seed")
    for keep in ("150%", "abc", "auto:ceiling=1", "100%", ","):
        assert_one_sentence(run("eval", "--suite", "scenes", f"--keep={keep}", *out), "keep")
    against = ("--methods", "divprune", "--against", "fastv")
    assert_one_sentence(run("eval", "--suite", "scenes", *against, *out), "--against fastv is not among")
    assert_one_sentence(run("eval", "--suite", "scenes", "--against", "blind", *out), "--against blind is not among")
    assert_one_sentence(run("eval", "--suite", "scenes", "--model", tmp_path / "gone", *out), "gone")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert_one_sentence(run("eval", "--suite", "scenes", "--model", tmp_path / "bert", *out), "'bert'")
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


def test_a_placeholder_in_a_question_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    file = folder / "other.txt"
    file.write_text('{"image": "0.png", "question": "what is <image>?", "answer": "a"}\n')
    assert_one_sentence(evaluated(file, tmp_path / "out"), "line 1", "the question holds '<image>'")


def assert_one_sentence(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("foveate: ") and "Traceback" not in result.output
    for word in words:
        assert word in lines[-1]


def test_bad_lines_are_named_or_skipped(folder: Path, tmp_path: Path) -> None:
    """All of them, before any model runs; nothing is written unless they are skipped."""
    whole = (folder / "0.png").read_bytes()
    (tmp_path / "good.png").write_bytes(whole)
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    one = {"image": "good.png", "question": "What colour is the sign?", "answer": "red"}
    lines = [one, one | {"image": "torn.png"}, one, one | {"image": "none.png"}, one | {"answer": ""}]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    refused = evaluated(file, out, "--methods", "stride")
    assert_one_sentence(refused, "3 lines of", "line 2: ", "torn.png", "line 4: ", "line 5: ", "--skip-bad")
    assert not out.exists()
    result = evaluated(file, out, "--methods", "stride", "--skip-bad")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "3 of the questions were skipped" in said and "line 4 (there is no image file at none.png" in said
    told = json.loads((out / "results.json").read_text())
    assert [one["where"] for one in told["skipped"]] == ["line 2", "line 4", "line 5"] and len(told["samples"]) == 2
    assert str(tmp_path) not in (out / "results.json").read_text()
    assert "2 questions about 1 images or clips" in (out / "report.md").read_text()


def test_a_question_that_fails_shows_in_the_exit_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails as it is asked, though nothing spoke against it before."""
    monkeypatch.setattr("foveate.data.askable.askable", lambda processor, samples, bad, *_: (samples, bad))
    lines = (folder / "samples.jsonl").read_text() + '\n{"image": "0.png", "question": "<image>?", "answer": "a"}\n'
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "mine.jsonl").write_text(lines)
    result = evaluated(tmp_path / "mine.jsonl", tmp_path / "out", "--methods", "divprune")
    said = " ".join(result.stdout.split())
    assert result.exit_code == 1 and "Right answers" in said
    assert "1 of the questions failed" in said and "line 7 (the question holds '<image>'" in said


@pytest.mark.slow
def test_it_grows_and_is_judged_anew(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert evaluated(folder, out, "--methods", "divprune").exit_code == 0
    before = (out / "answers.jsonl").read_text()
    judged = evaluated(folder, out, "--methods", "divprune", "--metric", "contains")
    assert judged.exit_code == 0 and (out / "answers.jsonl").read_text() == before
    assert json.loads((out / "results.json").read_text())["samples"][0]["metric"] == "contains"
    asked = evaluated(folder, out, "--methods", "divprune", "--suffix", "star", "--questions", 1)
    assert asked.exit_code == 0 and set(before.splitlines()) < set((out / "answers.jsonl").read_text().splitlines())
    told = json.loads((out / "results.json").read_text())
    assert [sample["question"].endswith(" star") for sample in told["samples"]] == [True]
    assert "each with “star” behind it" in told["configuration"]["about"]


def test_options_of_the_other_kind_of_questions(folder: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    for option in (("--metric", "contains"), ("--suffix", "In one word."), ("--skip-bad",)):
        assert_one_sentence(run("eval", "--suite", "scenes", *option, *out), option[0], "give --dataset")
    assert_one_sentence(evaluated(folder, tmp_path / "out", "--metric", "contain"), "did you mean 'contains'")
    assert_one_sentence(run("eval", "--dataset", folder, "-o", folder), "is read")
    (tmp_path / "mine.txt").write_text("mine")
    assert_one_sentence(run("eval", "--dataset", folder, "-o", tmp_path), "holds no evaluation")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_narrow_terminals_get_lines(done: Path) -> None:
    report = Report(Results.load(done))
    for width, table in ((100, True), (40, True), (24, False)):
        console = Console(width=width, file=io.StringIO())
        show(report, console)
        said = console.file.getvalue()  # type: ignore[attr-defined]
        assert ("┃" in said) == table and "…" not in said
        assert all(len(line) <= width for line in said.splitlines())
        assert all(label in said for label in report.labels)


def test_the_time_is_told_once() -> None:
    estimate = Estimate()
    told = [
        estimate.of(done, 1000, now) for done, now in ((300, 0.0), (310, 50.0), (330, 55.0), (350, 60.0), (360, 70.0))
    ]
    assert told == [None, None, None, "About 3 minutes to go.", None]  # 40 in 10 seconds, loading aside; 650 are left
    assert Estimate(0, (0, 0.0)).of(99, 100, 10.0) is None
    assert Estimate(0, (0, 0.0)).of(1, 1000, 10.0) == "About 2 h 46 min to go."


def test_ctrl_c_is_a_sentence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("foveate.evaluation.runner.evaluate", stopped)
    result = evaluated(folder, tmp_path / "out", "--methods", "stride")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "foveate: stopped; the same command goes on from here."
    monkeypatch.setattr("foveate.cli.eval.announce", stopped)
    assert evaluated(folder, tmp_path / "out").stderr.splitlines()[-1] == "foveate: stopped."


def test_methods_that_read_no_text_have_no_second_form(folder: Path, tmp_path: Path) -> None:
    refused = evaluated(folder, tmp_path / "new", "--methods", "divprune", "--without-question")
    assert_one_sentence(refused, "divprune reads no text, so it is the same without the question")
    refused = evaluated(folder, tmp_path / "new", "--methods", "divprune,fastv", "--without-question")
    assert_one_sentence(refused, "none of divprune, fastv prunes before the LLM by the prompt's text", "'cdpruner'")
    result = evaluated(folder, tmp_path, "--methods", "trim,stride", "--without-question")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "results.json").read_text())
    labels = {run["label"] for run in told["runs"]}
    assert {"trim", "trim without question", "stride"} <= labels and "stride without question" not in labels
