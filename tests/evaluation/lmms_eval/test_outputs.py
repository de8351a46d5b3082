"""What lmms-eval wrote, read as the results of an evaluation: files of its format, made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foveate.cli import app
from foveate.evaluation import Report
from foveate.evaluation.leaderboard import read_evaluations
from foveate.evaluation.lmms_eval.outputs import MEAN_RATIO, has_outputs, parse_arguments, read_outputs
from foveate.evaluation.suites import EvaluationError

COSTS = {"average_visual_tokens": 50.0, "text_flops": 1e9, "vision_flops": 2e9, "kv_bytes": 1e6, "encode_seconds": 0.5}
QA: list[Any] = [1.0, 0.0, 0.6]


def write(
    folder: Path,
    arguments: str,
    tasks: dict[str, list[Any]],
    date: str = "20260101_000000",
    model: str = "foveate",
    costs: dict[str, float] | None = COSTS,
    metrics: dict[str, list[str]] | None = None,
) -> None:
    """The files of one call, with the value of each metric for each question of each task."""
    place = folder / "a__model"
    place.mkdir(parents=True, exist_ok=True)
    names = {task: (metrics or {}).get(task, ["exact_match"]) for task in tasks}
    results = {
        task: {"alias": task, **{f"{name},none": 0.5 for name in names[task]}, f"{names[task][0]}_stderr,none": 0.1}
        for task in tasks
    }
    configs = {task: {"metric_list": [{"metric": one} for one in names[task]], "score_key": "score"} for task in tasks}
    config = {"model": model, "model_args": arguments}
    told = {"results": results, "configs": configs, "config": config, "lmms_eval_version": "0.7.3@abc"}
    (place / f"{date}_results.json").write_text(json.dumps(told))
    for task, values in tasks.items():
        lines = []
        for doc_id, value in enumerate(values):
            value = value if isinstance(value, dict) and value.keys() & set(names[task]) else {names[task][0]: value}
            counts = [{"input_tokens": 9, "output_tokens": 2, **({"foveate": costs} if costs else {})}]
            line = {"doc_id": doc_id, "filtered_resps": f"answer {doc_id}", "token_counts": counts, "input": "why?"}
            lines.append(json.dumps({**line, **value}))
        (place / f"{date}_samples_{task}.jsonl").write_text("\n".join(lines) + "\n")


def test_calls_of_one_model_become_one_evaluation(tmp_path: Path) -> None:
    write(tmp_path, "pretrained=a/model", {"qa": QA, "chart": [1.0, 1.0]}, "20260101_000001")
    write(tmp_path, "pretrained=a/model,method=idpruner,keep=0.25", {"qa": [1.0, 0.0, 0.0]}, "20260101_000002")
    write(tmp_path, "pretrained=a/model,method=idpruner,keep=25%", {"chart": [0.0, 1.0]}, "20260101_000003")
    write(tmp_path, "pretrained=a/model,method=fastv,keep=0.25", {"qa": QA}, "20260101_000004")
    write(tmp_path, "pretrained=other", {"qa": QA}, "20260101_000005", "qwen2_5_vl")  # no model of foveate's
    assert has_outputs(tmp_path)
    ((name, results),) = read_outputs(tmp_path).items()
    assert name == "model"
    assert [(run["label"], run["keep"]) for run in results.runs] == [("unpruned", ""), ("idpruner", "25%")]
    assert results.runs[1]["right"] == [0.0, 1.0, 1.0, 0.0, 0.0]  # tasks by name: chart, then qa
    assert results.runs[1]["answers"][0] == "answer 0"
    assert [one["label"] for one in results.refused] == ["fastv"]
    assert "questions of chart" in results.refused[0]["why"]
    assert results.times["idpruner@25%"]["encode"] == 0.5
    report = Report(results)
    place = report.at("idpruner", "25%")
    assert place is not None
    assert report.bootstrap.score(place, "qa").value == pytest.approx(1 / 3)
    assert report.bootstrap.score(place).value == pytest.approx((1 / 3 + 1 / 2) / 2)
    unpruned = report.at("unpruned")
    assert unpruned is not None
    assert report.bootstrap.difference(place, unpruned, "qa").value == pytest.approx(1 / 3 - 1.6 / 3)
    columns = results.configuration["figures"]["columns"]
    assert columns == ["qa exact_match", "chart exact_match", MEAN_RATIO]
    assert "exact_match of" in results.configuration["about"] and "lmms-eval 0.7.3" in results.configuration["about"]


def test_the_later_of_two_calls_counts(tmp_path: Path) -> None:
    write(tmp_path, "pretrained=m,method=idpruner,keep=0.25", {"qa": [0.0]}, "20260101_000002")
    write(tmp_path, "pretrained=m,method=idpruner,keep=0.25", {"qa": [1.0]}, "20260101_000003")
    assert read_outputs(tmp_path)["m"].runs[0]["right"] == [1.0]


def test_engines_are_evaluations_of_their_own_and_seeds_share_a_row(tmp_path: Path) -> None:
    write(tmp_path, "pretrained=m,method=random,keep=0.1,seed=0", {"qa": [1.0]}, "20260101_000001")
    write(tmp_path, "pretrained=m,method=random,keep=0.1,seed=1", {"qa": [0.0]}, "20260101_000002")
    tokens = {"average_visual_tokens": 9.0}
    write(tmp_path, "pretrained=m,method=idpruner,keep=0.1", {"qa": [1.0]}, "20260101_000003", "foveate_vllm", tokens)
    found = read_outputs(tmp_path)
    assert list(found) == ["m", "m-vllm"]
    ((row),) = Report(found["m"]).rows
    assert (row.seeds, row.scores.tolist()) == (2, [0.5])
    text = Report(found["m-vllm"]).text()  # whose FLOPs nobody counted
    assert "| idpruner | 10% | 9.0 |  |  |  |" in text


@pytest.mark.parametrize(
    ("values", "metrics", "scores"),
    [
        ([{"mme_a": {"score": 1.0}}, {"mme_b": {"score": 0.0}}], ["mme_a", "mme_b"], [1.0, 0.0]),
        ([True, False], ["exact_match"], [1.0, 0.0]),
        ([{"x_ACC@0.5": {"pred": [0, 0, 2, 2], "bbox": [0, 0, 2, 3]}}], ["x_IoU", "x_ACC@0.1", "x_ACC@0.5"], [1.0]),
        ([{"x_ACC@0.5": {"pred": [0, 0, 2, 2], "bbox": [1, 1, 3, 3]}}], ["x_IoU", "x_ACC@0.1", "x_ACC@0.5"], [0.0]),
    ],
)
def test_scores_of_single_questions(tmp_path: Path, values: list[Any], metrics: list[str], scores: list[float]) -> None:
    write(tmp_path, "pretrained=m,method=idpruner,keep=0.25", {"t": values}, metrics={"t": metrics})
    assert read_outputs(tmp_path)["m"].runs[0]["right"] == scores


def test_tasks_without_such_scores_keep_their_figures(tmp_path: Path) -> None:
    judged = [{"submission": {"prediction": "A"}}]
    names = {"judged": ["submission"]}
    write(tmp_path, "pretrained=m,method=idpruner,keep=0.25", {"qa": QA, "judged": judged}, metrics=names)
    results = read_outputs(tmp_path)["m"]
    assert {sample["family"] for sample in results.samples} == {"qa"}
    assert "judged" in results.configuration["about"]
    assert "judged submission" in results.configuration["figures"]["columns"]


def test_mean_of_ratios(tmp_path: Path) -> None:
    for date, arguments, figures in (
        ("20260101_000001", "", {"a": {"x,none": 50.0, "y,none": 1.0}, "b": {"p,none": 9.0, "average,none": 0.8}}),
        (
            "20260101_000002",
            ",method=scope,keep=0.1",
            {"a": {"x,none": 40.0, "y,none": 1.0}, "b": {"average,none": 0.4}},
        ),
    ):
        write(tmp_path, f"pretrained=m{arguments}", {"a": [1.0], "b": [1.0]}, date)
        path = tmp_path / "a__model" / f"{date}_results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "results": figures}))
    rows = read_outputs(tmp_path)["m"].configuration["figures"]["rows"]
    assert [row["values"][-1] for row in rows] == pytest.approx([100.0, 100 * (0.8 + 0.5) / 2])


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="give --output_path"):
        read_outputs(tmp_path)
    write(tmp_path, "pretrained=m", {"qa": QA})
    with pytest.raises(EvaluationError, match="no answers with pruning"):
        read_outputs(tmp_path)
    write(tmp_path, "pretrained=m,method=idpruner,keep=0.25", {"qa": QA}, "20260101_000001")
    samples = tmp_path / "a__model" / "20260101_000001_samples_qa.jsonl"
    whole = samples.read_text()
    samples.write_text(whole[:-20])
    with pytest.raises(EvaluationError, match="damaged"):
        read_outputs(tmp_path)
    samples.unlink()
    with pytest.raises(EvaluationError, match="--log_samples"):
        read_outputs(tmp_path)
    write(tmp_path, "pretrained=m,method=idpruner,keep=0.25", {"qa": QA}, "20260101_000001", costs=None)
    write(tmp_path, "pretrained=m,method=scope,keep=0.25", {"qa": QA}, "20260101_000002")
    (refused,) = read_outputs(tmp_path)["m"].refused
    assert refused["label"] == "idpruner" and "--use_cache" in refused["why"]
    write(tmp_path, "pretrained=m,method=idpuner,keep=0.25", {"qa": QA}, "20260101_000003")
    with pytest.raises(EvaluationError, match="did you mean 'idpruner'"):
        read_outputs(tmp_path)


def test_the_leaderboard_takes_both_kinds(tmp_path: Path) -> None:
    write(tmp_path / "out", "pretrained=a/model", {"qa": QA}, "20260101_000001")
    write(tmp_path / "out", "pretrained=a/model,method=idpruner,keep=0.25", {"qa": QA}, "20260101_000002")
    assert list(read_evaluations(tmp_path / "out")) == ["model"]
    page = tmp_path / "page.md"
    done = CliRunner().invoke(app, ["leaderboard", str(tmp_path / "out"), "-o", str(page)])
    assert done.exit_code == 0, done.output
    assert "## Model model, suite lmms-eval" in page.read_text() and "lmms-eval's own figures" in page.read_text()
    empty = CliRunner().invoke(app, ["leaderboard", str(tmp_path / "nothing"), "-o", str(page)])
    assert empty.exit_code != 0 and "no results" in empty.output


def test_arguments_are_parsed_as_lmms_eval_parses_them() -> None:
    text = 'pretrained=a/b,keep=0.25,n=3,limit_mm_per_prompt={"image": 4, "video": 1},layers="1,3"'
    assert parse_arguments(text) == {
        "pretrained": "a/b",
        "keep": 0.25,
        "n": 3,
        "limit_mm_per_prompt": '{"image": 4, "video": 1}',
        "layers": '"1,3"',
    }
