"""Whole evaluations on testbed-llava: what is answered, kept, gone on with, and refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

import foveate
from foveate.data import Prompt, answers
from foveate.data.metrics import is_right
from foveate.data.samples import Sample
from foveate.errors import MethodError, ModelError
from foveate.evaluation.inference import Examinee, pack_mask, shows_all, unpack_mask
from foveate.evaluation.results import RESULTS, TIMED, Results
from foveate.evaluation.runner import Evaluation, configuration, evaluate, processes
from foveate.evaluation.runs import Run, format_keep, runs_of
from foveate.evaluation.storage import ANSWERS, KEPT, TIMES, Journal
from foveate.evaluation.suites import EvaluationError, Suite, dataset, suite
from foveate.evaluation.workers import Work, _worker
from foveate.methods import get_method
from foveate.models import adapter_of
from foveate.runtime.cost import CostModel
from foveate.testbed import load_shipped

PAIR = load_shipped()
METHODS = ("idpruner", "fastv", "evs")  # before the LLM, inside it, and for clips only


def wanted(questions: int = 12, **fields: Any) -> Evaluation:
    defaults: dict[str, Any] = {"batch": 5, "max_new_tokens": 4, "random_seeds": 2, "workers": 1}
    methods, asked = tuple(map(get_method, METHODS)), suite("scenes", questions)
    asked = dataclasses.replace(asked, samples=tuple(dataclasses.replace(s, boxes=()) for s in asked.samples))
    return Evaluation(asked, "testbed-llava", methods, ("25%", "20"), **defaults | fields)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("done")
    return evaluate(wanted(), load_shipped, folder, loaded=PAIR), folder


def test_all_runs_are_there(done: tuple[Results, Path]) -> None:
    results, _ = done
    kept = ["random#0", "random#1", "stride", "avgpool", "downsample", "idpruner", "fastv"]
    keys = [Run(run["label"], run["keep"], seed=run["seed"]).key for run in results.runs]
    assert keys == ["unpruned", "blind", *(f"{name}@{keep}" for keep in ("25%", "20") for name in kept)]
    assert [(one["label"], one["keep"]) for one in results.refused] == [("evs", "25%"), ("evs", "20")]
    assert "single image" in results.refused[0]["why"]
    assert [row.seeds for row in results.rows() if row.label == "random"] == [2, 2]


def test_answers_are_those_of_one_by_one(done: tuple[Results, Path]) -> None:
    results, _ = done
    samples = wanted().suite.samples
    for run in results.runs:
        if run["label"] in ("idpruner", "fastv", "unpruned", "blind"):
            keep = {"25%": 0.25, "20": 20, "": 1.0}[run["keep"]]
            method = run["label"] if run["keep"] else "stride"
            with foveate.prune(PAIR[0], method, keep):
                expected = [
                    answers(*PAIR, [Prompt(() if run["label"] == "blind" else s.open(), s.question)], 4)[0]
                    for s in samples
                ]
            assert run["answers"] == expected
            assert run["right"] == [int(is_right(s, a)) for s, a in zip(samples, expected, strict=True)]


def test_costs_are_those_of_the_reports(done: tuple[Results, Path]) -> None:
    results, _ = done
    by_key = {(row.label, row.keep): row.costs for row in results.rows()}
    samples = wanted().suite.samples
    with foveate.prune(PAIR[0], "fastv", 0.25) as pruning:
        reports = [answers(*PAIR, [Prompt(s.open(), s.question)], 1) and pruning.report() for s in samples]
    cost = by_key["fastv", "25%"]
    assert cost["visual_tokens"] == (196 + 196 + 49 + 49 + 49) / 5
    assert cost["text_flops"] == pytest.approx(sum(one.text_flops for one in reports) / len(samples))
    assert cost["kv_bytes"] == pytest.approx(sum(one.kv_bytes for one in reports) / len(samples))
    assert cost["vision_flops"] == by_key["unpruned", ""]["vision_flops"] == reports[0].vision_flops
    blind = by_key["blind", ""]
    tokenizer = PAIR[1].tokenizer
    lengths = [[1 + len(tokenizer(s.question, add_special_tokens=False)["input_ids"]) for s in samples]] * 5
    assert blind["text_flops"] == pytest.approx(CostModel(adapter_of(PAIR[0])).text_flops(lengths) / len(samples))
    assert blind["visual_tokens"] == blind["vision_flops"] == 0


def test_what_is_kept_is_recorded(done: tuple[Results, Path], tmp_path: Path) -> None:
    results, folder = done
    samples = wanted().suite.samples
    assert {*results.kept} == {run.key for run in wanted().runs if run.label not in ("blind", "evs")}
    for name in ("idpruner", "fastv"):
        with foveate.prune(PAIR[0], name, 0.25) as pruning:
            answers(*PAIR, [Prompt(samples[3].open(), samples[3].question)], 1)
            (image,) = pruning.report().images
        assert results.kept[f"{name}@25%"][3] == (pack_mask(image.grid, image.kept),)
    for masks in results.kept["unpruned"]:
        assert [unpack_mask(mask)[1].all() for mask in masks] == [True]
    for name, file in ((one.name, one) for one in folder.iterdir() if one.name != KEPT):
        (tmp_path / name).write_bytes(file.read_bytes())  # as an older foveate left it
    told: list[tuple[int, int]] = []
    older = evaluate(wanted(), load_shipped, tmp_path, lambda *seen: told.append(seen), PAIR)
    assert older == results and older.kept == {} and told == [(12 * 18, 12 * 18)]


def test_times_are_split(done: tuple[Results, Path]) -> None:
    results, _ = done
    rows = {(row.label, row.keep): row.times for row in results.rows()}
    assert rows["idpruner", "25%"]["encode"] == rows["unpruned", ""]["encode"] > 0
    assert rows["idpruner", "25%"]["select"] > rows["unpruned", ""]["select"]
    assert all(value >= 0 for times in rows.values() for value in times.values())


def test_what_is_written_is_read(done: tuple[Results, Path], tmp_path: Path) -> None:
    results, folder = done
    assert Results.load(folder) == results
    told = json.loads((folder / RESULTS).read_text())
    assert set(told) == {"configuration", "samples", "runs", "refused"}
    assert len(told["runs"][0]["answers"]) == len(told["samples"]) == 12
    results.save(tmp_path)
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in (RESULTS, TIMED))
    (tmp_path / TIMED).unlink()
    assert Results.load(tmp_path).rows()[0].times == {}
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(EvaluationError, match="holds no results"):
        Results.load(tmp_path)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from evaluation import test_runner as here
from pathlib import Path
def advance(done, whole):
    if done >= 60:
        os.kill(os.getpid(), signal.SIGKILL)
here.evaluate(here.wanted(), here.load_shipped, Path({folder!r}), advance, here.PAIR)
"""


@pytest.mark.slow
def test_killed_and_gone_on_with_is_the_same(done: tuple[Results, Path], tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    left = (tmp_path / ANSWERS).read_text()
    assert not (tmp_path / RESULTS).exists() and 0 < left.count("\n") < 17 * 3
    with (tmp_path / ANSWERS).open("a") as file:
        file.write('{"run": "stride@20", "batch": 2, "answ')  # a line that was being written
    told: list[tuple[int, int]] = []
    asked: list[str] = []

    class Counting(type(PAIR[0])):  # type: ignore[misc]
        def generate(self, **kwargs: Any) -> Any:
            asked.append("once")
            return super().generate(**kwargs)

    model = PAIR[0]
    plain, model.__class__ = type(model), Counting
    try:
        evaluate(wanted(), load_shipped, tmp_path, lambda *seen: told.append(seen), PAIR)
    finally:
        model.__class__ = plain
    _, folder = done
    for name in (ANSWERS, RESULTS):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    runs = len(wanted().runs)
    assert told[0][0] >= 60 and told[-1] == (12 * runs, 12 * runs)
    refused = 2 * 3  # evs asks the model, too, before it finds out
    assert len(asked) <= 3 * runs - left.count("\n") + refused
    evaluate(wanted(), load_shipped, tmp_path, loaded=(PAIR[0], None))  # nothing is left to do: no processor is needed


@pytest.mark.slow
def test_workers_find_the_same(tmp_path: Path) -> None:
    little = dataclasses.replace(wanted(4), methods=(get_method("idpruner"),), keeps=("20",), batch=2)
    for workers in (1, 2):
        evaluate(dataclasses.replace(little, workers=workers), load_shipped, tmp_path / str(workers), loaded=PAIR)
    for name in (ANSWERS, RESULTS):
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_workers_tell_what_goes_wrong_and_stop_when_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    known = suite("scenes").samples[0]
    unknown = dataclasses.replace(known, question="what is <image>?")
    runs = (Run("unpruned"), Run("blind"))

    def told(asked: Sample, parent: int) -> list[Any]:
        queue: SimpleQueue[Any] = SimpleQueue()
        _worker(Work((asked,), ((0,),), ((0, runs),), 4), lambda: PAIR, 1, parent, queue)
        return [queue.get() for _ in range(queue.qsize())]

    cells = told(unknown, os.getppid())
    assert [cell.run for cell in cells[:-1]] == ["unpruned", "blind"] and cells[-1] is None
    assert all("the question holds '<image>'" in cell.failed[0][1] for cell in cells[:-1])
    first, second, end = told(known, os.getppid())
    assert (first.run, second.run, end) == ("unpruned", "blind", None)
    assert told(known, -1) == []


def test_another_configuration_is_refused(done: tuple[Results, Path], tmp_path: Path) -> None:
    _, folder = done
    for changed, said in (
        ({"batch": 6}, "batch: 5 there, 6 here"),
        ({"max_new_tokens": 5}, "max_new_tokens: 4 there, 5 here"),
        (
            {"methods": (get_method("idpruner", balance=0.7),)},
            "methods: idpruner has balance=0.5 there, balance=0.7 here",
        ),
    ):
        with pytest.raises(EvaluationError, match=said):
            evaluate(dataclasses.replace(wanted(), **changed), load_shipped, folder, loaded=PAIR)  # type: ignore[arg-type]
    Journal(tmp_path, {"batch": 6})  # one that never got as far as an answer is in nobody's way
    assert Journal(tmp_path, {"batch": 5}).cells == {}
    assert json.loads((tmp_path / "configuration.json").read_text()) == {"batch": 5}
    (tmp_path / "something").touch()
    with pytest.raises(EvaluationError, match="holds no evaluation"):
        evaluate(wanted(), load_shipped, tmp_path, loaded=PAIR)


def test_damage_is_told(done: tuple[Results, Path], tmp_path: Path) -> None:
    described = configuration(wanted(), PAIR[0])
    Journal(tmp_path, described)
    (tmp_path / ANSWERS).write_text("{nonsense}\n")
    with pytest.raises(EvaluationError, match=r"answers\.jsonl is damaged"):
        Journal(tmp_path, described)
    (tmp_path / "configuration.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"configuration\.json is damaged"):
        Journal(tmp_path, described)


def test_times_without_answers_are_done_again(done: tuple[Results, Path], tmp_path: Path) -> None:
    described = configuration(wanted(), PAIR[0])
    journal = Journal(tmp_path, described)
    cell = Journal(done[1], described).cells["unpruned", 0]
    journal.add(cell)
    with (tmp_path / TIMES).open("a") as file:
        file.write('{"run": "blind", "batch": 0, "times": {}}\n')
    assert Journal(tmp_path, described).cells == {("unpruned", 0): cell}


def test_which_runs_show_the_encoder_all() -> None:
    pruned = {name: Run(name, "25%", get_method(name)) for name in ("divprune", "fastv", "pixelprune")}
    runs = [Run("unpruned"), Run("blind"), Run("oracle", "25%"), Run("downsample", "25%"), *pruned.values()]
    assert [run.label for run in runs if shows_all(run)] == ["unpruned", "oracle", "divprune", "fastv"]


def test_small_models_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert processes(wanted(workers=None), PAIR[0]) == cores
    assert processes(wanted(workers=3), PAIR[0]) == 3
    large = torch.nn.Linear(1, 1)
    large.weight = torch.nn.Parameter(torch.empty(60_000_000, 1, device="meta"))
    assert processes(wanted(workers=None), large) == 1


def test_clips_are_refused_where_only_images_are_seen(tmp_path: Path) -> None:
    sample = dataclasses.replace(suite("scenes").samples[0], video=True)
    evaluation = dataclasses.replace(wanted(), suite=Suite("clips", "Clips.", (sample,)))
    with pytest.raises(ModelError, match="sees images only"):
        evaluate(evaluation, load_shipped, tmp_path, loaded=PAIR)
    assert not list(tmp_path.iterdir())


def test_the_oracle_is_told_the_boxes() -> None:
    """It keeps the asked-about corner, which chance does not."""
    samples = [dataclasses.replace(s, boxes=(((0.0, 0.0, 56.0, 28.0),),)) for s in suite("scenes", 3).samples]
    evaluation = dataclasses.replace(wanted(), suite=Suite("boxes", "Boxes.", tuple(samples)))
    runs = [run for run in evaluation.runs if run.key == "oracle@25%"]
    kept = []
    model = PAIR[0]
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: kept.append(kwargs["position_ids"]), with_kwargs=True
    )
    (cell,) = Examinee(*PAIR, 4).cells(0, samples, runs)
    hook.remove()
    assert cell.refused is None
    corner = {1 + 14 * row + column for row in range(3) for column in range(7)}  # half of the fourth row is left out
    assert all(corner <= set(row.tolist()) for row in kept[0])
    assert not any(run.label == "oracle" for run in wanted().runs)


def test_suites_and_budgets() -> None:
    everything = suite("scenes")
    assert len(everything.samples) == 70 and everything.families[0] == "attributes"
    some = suite("scenes", 10, seed=1)
    assert len(some.samples) == 10 and some.samples == suite("scenes", 10, seed=1).samples
    assert some.digest() != suite("scenes", 10, seed=2).digest()
    assert {s.family for s in suite("scenes", families=["counting", "charts"]).samples} == {"counting", "charts"}
    with pytest.raises(EvaluationError, match="did you mean 'counting'"):
        suite("scenes", families=["couting"])
    with pytest.raises(EvaluationError, match="did you mean 'scenes'"):
        suite("scene")
    assert [format_keep(keep) for keep in ("25%", "0.125", "144", " 5 %")] == ["25%", "12.5%", "144", "5%"]
    with pytest.raises(EvaluationError, match="equal budgets"):
        format_keep("1.0")
    labels = [run.label for run in runs_of([get_method("stride"), get_method("random", seed=9)], ["5%"], 1, True)]
    assert labels == ["unpruned", "blind", "random", "avgpool", "downsample", "oracle", "stride"]
    by_content = runs_of([get_method("stride")], [format_keep("auto: floor = 20%")], 1, True)
    assert [run.key for run in by_content[2:]] == [
        f"{name}@auto:floor=0.2" for name in ("random#0", "avgpool", "oracle", "stride")
    ]  # the size of a smaller picture cannot depend on what it shows
    assert all(run.budget == foveate.Budget.auto(floor=0.2) for run in by_content[2:])


def test_generated_scenes_are_a_suite() -> None:
    pytest.importorskip("skimage")
    made = suite("testbed", 30, seed=3, families=["counting", "charts"])
    assert len(made.samples) == 30 and made.families == ["charts", "counting"]
    assert all(sample.boxes for sample in made.samples)
    assert made.digest() == suite("testbed", 30, seed=3, families=["counting", "charts"]).digest()
    assert "clips" in suite("testbed", 8, clips=True).families and "clips" not in suite("testbed", 7).families
    with pytest.raises(EvaluationError, match="did you mean 'counting'"):
        suite("testbed", 2, families=["count"])


def test_a_folder_is_a_suite(tmp_path: Path) -> None:
    for number, sample in enumerate(suite("scenes", 3).samples):
        sample.open()[0].save(tmp_path / f"{number}.png")
    lines = [
        {"image": f"{n}.png", "question": "how many stars are there?", "answer": "1", "family": f"f{n}"}
        for n in range(3)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = dataset(tmp_path, families=["f0", "f2"])
    assert [sample.family for sample in made.samples] == ["f0", "f2"]
    before = made.digest()
    suite("scenes").samples[-1].open()[0].resize((50, 50)).save(tmp_path / "0.png")
    assert dataset(tmp_path, families=["f0", "f2"]).digest() != before


def test_methods_that_cannot_be_made_are_listed(tmp_path: Path) -> None:
    evaluation = dataclasses.replace(wanted(2), methods=(), keeps=("5%",), unable=(("other", "needs more."),))
    results = evaluate(evaluation, load_shipped, tmp_path, loaded=PAIR)
    assert results.refused == [{"label": "other", "keep": "", "why": "needs more."}]


def test_refusals_are_sentences_of_foveate(done: tuple[Results, Path]) -> None:
    with pytest.raises(MethodError) as error, foveate.prune(PAIR[0], "evs", 0.25):
        answers(*PAIR, [Prompt(suite("scenes").samples[0].open(), "how many stars are there?")])
    assert done[0].refused[0]["why"] == str(error.value)


def test_the_key_of_a_method_that_was_moved_to_a_layer() -> None:
    for run in (Run("divprune@1", "50%"), Run("random", "50%", seed=2), Run("unpruned"), Run("divprune", "64")):
        back = Run.of_key(run.key)
        assert (back.label, back.keep, back.seed) == (run.label, run.keep, run.seed)
