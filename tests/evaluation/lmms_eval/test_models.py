"""foveate's models in lmms-eval itself, on a task of its format, against `foveate eval` and the model alone."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("lmms_eval", reason="needs lmms-eval: make test-lmms")

from datasets import Dataset, DatasetDict, Features, Sequence, Value
from datasets import Image as DataImage
from lmms_eval import evaluator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.models import get_model
from lmms_eval.models.model_utils.gen_metrics import reset_logged_metrics, summarize_logged_metrics
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config
from typer.testing import CliRunner

import foveate
from foveate.cli import app
from foveate.data.prompts import Prompt, decode, encode
from foveate.errors import BudgetError, ConfigError, FoveateError, MethodError, ModelError
from foveate.evaluation.lmms_eval.generation import GenerationOptions
from foveate.evaluation.lmms_eval.outputs import read_outputs
from foveate.evaluation.runner import Evaluation, evaluate
from foveate.evaluation.suites import Suite, suite
from foveate.methods import get_method
from foveate.testbed import load_shipped, scenes

from .scenes_task import TASK, write_task

pytestmark = pytest.mark.lmms
NAME = "testbed-llava"


def asked() -> Suite:
    whole = suite("scenes")
    return dataclasses.replace(whole, samples=tuple(dataclasses.replace(one, boxes=()) for one in whole.samples))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The runs of `foveate eval` on the same questions, by label."""
    one = Evaluation(asked(), NAME, (get_method("idpruner"),), ("25%",), batch=8, max_new_tokens=16, workers=1)
    one = dataclasses.replace(one, random_seeds=1)
    results = evaluate(one, load_shipped, tmp_path_factory.mktemp("eval"), loaded=load_shipped())
    return {run["label"]: run for run in results.runs}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(asked().samples, tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def manager(task: Path) -> TaskManager:
    return TaskManager("WARNING", include_path=str(task), include_defaults=False, model_name="foveate")


def run(manager: TaskManager, arguments: str, batch: int, simple: bool = False) -> dict[str, Any]:
    told = evaluator.simple_evaluate(
        model="foveate",
        model_args=f"pretrained={NAME}{arguments}",
        tasks=[TASK],
        task_manager=manager,
        batch_size=batch,
        force_simple=simple,
        bootstrap_iters=0,
    )
    assert told is not None
    return dict(told)


@pytest.mark.parametrize(
    ("label", "arguments", "batch", "simple"),
    [
        ("unpruned", "", 1, False),
        ("unpruned", "", 8, False),
        ("idpruner", ",method=idpruner,keep=0.25", 1, True),
        ("idpruner", ",method=idpruner,keep=25%", 8, False),
        ("downsample", ",method=downsample,keep=0.25", 8, True),
        ("random", ",method=random,keep=0.25,seed=0", 8, False),
        ("blind", ",method=blind", 8, False),
    ],
)
def test_answers_and_figures_are_those_of_foveate_eval(
    expected: dict[str, dict[str, Any]], manager: TaskManager, label: str, arguments: str, batch: int, simple: bool
) -> None:
    told, wanted = run(manager, arguments, batch, simple), expected[label]
    lines = sorted(told["samples"][TASK], key=lambda line: line["doc_id"])
    assert [line["filtered_resps"][0] for line in lines] == wanted["answers"]
    assert [int(line["exact_match"]) for line in lines] == wanted["right"]
    right = sum(wanted["right"]) / len(wanted["right"])
    assert told["results"][TASK]["exact_match,none"] == pytest.approx(right)
    counts = [line["token_counts"][0]["foveate"] for line in lines]
    for name, key in (("visual_tokens", "average_visual_tokens"), *((one, one) for one in ("text_flops", "kv_bytes"))):
        assert sum(one[key] for one in counts) / len(counts) == pytest.approx(wanted["costs"][name], rel=1e-6), name
    shown = {"unpruned": (196, 196), "blind": (0, 0)}.get(label, (196, 49))
    throughput = told["throughput"]
    assert (throughput["avg_visual_tokens_before"], throughput["avg_visual_tokens"]) == shown
    spent = sum(one.get(f"{part}_seconds", 0.0) for one in counts for part in ("encode", "select", "prefill", "decode"))
    assert 0 < spent <= throughput["total_elapsed_time"]


def test_the_command_and_the_leaderboard_of_its_output(
    expected: dict[str, dict[str, Any]], task: Path, tmp_path: Path
) -> None:
    out, record = tmp_path / "out", tmp_path / "out" / "foveate.json"
    command = [sys.executable, "-m", "lmms_eval", "--model", "foveate", "--batch_size", "8", "--log_samples"]
    command += ["--model_args", f"pretrained={NAME},method=idpruner,keep=0.25,record={record}", "--tasks", TASK]
    command += ["--include_path", str(task), "--output_path", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "exact_match" in done.stdout, done.stdout + done.stderr
    (results,) = read_outputs(out).values()
    (one,) = results.runs
    assert one["answers"] == expected["idpruner"]["answers"] and one["right"] == expected["idpruner"]["right"]
    assert len({sample["image"] for sample in results.samples}) == 12  # the task names its scenes as clusters
    told = json.loads(record.read_text())
    assert (told["label"], told["keep"], told["model"], told["engine"]) == ("idpruner", "25%", NAME, "transformers")
    assert told["sums"]["questions"] == len(results.samples) and told["means"]["visual_tokens"] == 49
    page = tmp_path / "page.md"
    made = CliRunner().invoke(app, ["leaderboard", str(out), "-o", str(page)])
    assert made.exit_code == 0, made.output
    right = 100 * sum(expected["idpruner"]["right"]) / len(results.samples)
    assert f"| idpruner | {right:.1f} [" in page.read_text()
    assert (page.with_suffix("") / NAME / "report.md").is_file()


def test_refcoco_as_internvl_is_evaluated_on_it(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "benchmarks" / "refcoco"
    manager = TaskManager("WARNING", include_path=str(folder), include_defaults=False)
    assert len([name for name in manager.all_tasks if "_boxes_" in name]) == 8
    assert "refcoco_boxes" in manager.all_tasks
    sys.path.insert(0, str(folder))
    try:
        import boxes
    finally:
        sys.path.remove(str(folder))
    picture, asked = Image.new("RGB", (200, 100)), [["left cup", "cup"], ["the dog"]]
    names = ["COCO_train2014_1_0.jpg", "COCO_train2014_1_1.jpg"]
    rows = {"image": [picture] * 2, "answer": asked, "bbox": [[20.0, 10.0, 100.0, 50.0]] * 2, "file_name": names}
    features = Features({"image": DataImage(), "answer": Sequence(Value("string")), "bbox": Sequence(Value("float64"))})
    features["file_name"] = Value("string")
    DatasetDict({"val": Dataset.from_dict(rows, features=features)}).save_to_disk(str(tmp_path / "data"))
    config = load_yaml_config(str(folder / "refcoco_val.yaml"))
    config |= {"dataset_path": str(tmp_path / "data"), "dataset_kwargs": {"load_from_disk": True}}
    arguments = f"pretrained={NAME},method=idpruner,keep=0.25"
    told = evaluator.simple_evaluate(model="foveate", model_args=arguments, tasks=[config], task_manager=manager)
    assert told is not None
    lines = told["samples"]["refcoco_boxes_val"]
    assert [line["doc"]["expression"] for line in lines] == ["left cup", "cup", "the dog"]
    assert "<ref>left cup</ref>" in lines[0]["arguments"][0]
    assert {line["picture"] for line in lines} == {"COCO_train2014_1"}
    doc = {"image": picture, "bbox": [20.0, 10.0, 100.0, 50.0], "file_name": names[0]}
    for answer, right in (("<box>[[100, 100, 600, 600]]</box>", 1.0), ("[[100, 100, 300, 600]]", 0.0), ("no", 0.0)):
        assert boxes.process_results(doc, [answer])["ACC@0.5"] == right


# -- what tasks may ask for besides


def model(arguments: str = "", name: str = NAME, simple: bool = False, batch: int = 4) -> Any:
    made = get_model("foveate", simple).create_from_arg_string(f"pretrained={name}{arguments}", {"batch_size": batch})
    made.task_dict = {"t": {"test": list(range(100))}}
    return made


def chat(message_lists: list[Any], options: dict[str, Any]) -> list[Instance]:
    """Requests of a chat model, each of the messages at its place."""
    return [
        Instance(
            "generate_until",
            ("", lambda place: message_lists[place], dict(options), place, "t", "test"),
            0,
            {"task": "t", "doc_id": place, "repeats": 1},
        )
        for place in range(len(message_lists))
    ]


def user(text: str, *shown: Any, kind: str = "image") -> list[dict[str, Any]]:
    parts = [{"type": kind, "url": one} for one in shown]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def texts(results: list[GenerationResult]) -> list[str]:
    return [one.text for one in results]


def alone(pair: Any, prompt: Prompt, **options: Any) -> str:
    inputs = encode(*pair, [prompt])
    with torch.no_grad():
        output = pair[0].generate(**inputs, **{"max_new_tokens": 8, "do_sample": False, **options})
    return decode(pair[1], output[:, inputs["input_ids"].shape[1] :])[0]


def test_several_images_clips_and_texts_in_batches() -> None:
    name = "testbed-qwen2.5-vl"
    drawn, pair = scenes(), load_shipped(name)
    clip = [drawn[0].image.rotate(angle) for angle in (0, 5, 10, 15)]
    question = drawn[0].questions[0].text
    prompts = [
        Prompt([drawn[0].image], question),
        Prompt([drawn[0].image, drawn[1].image], question),
        Prompt([drawn[2].image.resize((56, 84))], question),
        Prompt((), question),
    ]
    made = [user(one.question, *one.pictures) for one in prompts]
    lm = model(",method=divprune,keep=0.25", name)
    found = lm.generate_until(chat([*made, user(question, clip, kind="video")], {"max_new_tokens": 8}))
    with foveate.prune(pair[0], "divprune", keep=0.25):
        wanted = [alone(pair, prompt) for prompt in (*prompts, Prompt(clip, question, True))]
    assert texts(found) == wanted
    with foveate.prune(pair[0], "stride", keep=1.0) as pruning:
        sizes = []
        for prompt in prompts[:3]:
            alone(pair, prompt)
            sizes.append(pruning.report().tokens)
    assert [one.token_counts.costs["visual_tokens_before"] for one in found[:4]] == [*sizes, 0]


def test_generation_options_are_those_of_the_task() -> None:
    drawn, pair = scenes(), load_shipped(NAME)
    prompts = [Prompt([scene.image], scene.questions[0].text) for scene in drawn[:4]]
    made = [user(one.question, *one.pictures) for one in prompts]
    lm = model(",method=idpruner,keep=0.25")

    def told(**options: Any) -> list[GenerationResult]:
        return list(lm.generate_until(chat(made, {"max_new_tokens": 8, **options})))

    greedy = told()
    with foveate.prune(pair[0], "idpruner", keep=0.25):
        beams = told(num_beams=3)
        assert texts(beams) == [alone(pair, prompt, num_beams=3) for prompt in prompts]
        assert texts(told(max_new_tokens=1)) == [alone(pair, prompt, max_new_tokens=1) for prompt in prompts]
    for one, other in zip(beams, greedy, strict=True):
        assert one.token_counts.input_tokens == other.token_counts.input_tokens
        assert one.token_counts.costs["visual_tokens"] == other.token_counts.costs["visual_tokens"] == 49
    assert [one.token_counts.output_tokens for one in told(max_new_tokens=1)] == [1] * 4
    torch.manual_seed(0)
    assert texts(told(temperature=5.0)) != texts(greedy)
    letter = greedy[0].text[1]
    stopped = told(until=[letter])
    assert texts(stopped) == [one.text.split(letter)[0].strip() for one in greedy]
    longest = max(range(4), key=lambda place: greedy[place].token_counts.output_tokens)
    last = greedy[longest].text.split()[0]
    assert told(until=last)[longest].token_counts.output_tokens < greedy[longest].token_counts.output_tokens
    assert texts(told(until=["\n\n"])) == texts(greedy)


def test_a_conversation_of_several_rounds() -> None:
    drawn, pair = scenes(), load_shipped(NAME)
    first, second = (question.text for question in drawn[0].questions[:2])

    def round_of(doc: Any, round_idx: int = 0, previous_output: Any = (), previous_round_info: Any = None) -> Any:
        if round_idx == 0:
            return user(first, drawn[0].image)
        assert previous_round_info == (None if round_idx == 1 else "kept")
        answered = [{"role": "assistant", "content": [{"type": "text", "text": previous_output[0]}]}]
        return [*user(first, drawn[0].image), *answered, *user(second)], round_idx == 2, previous_output, "kept"

    arguments = ("", round_of, {"max_new_tokens": 8}, 0, "t", "test")
    request = Instance("generate_until_multi_round", arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1})
    ((one, other),) = model(",method=idpruner,keep=0.25").generate_until_multi_round([request])
    with foveate.prune(pair[0], "idpruner", keep=0.25):
        assert one == alone(pair, Prompt([drawn[0].image], first))
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": first}]},
            {"role": "assistant", "content": [{"type": "text", "text": one}]},
            {"role": "user", "content": [{"type": "text", "text": second}]},
        ]
        assert other == alone(pair, Prompt([drawn[0].image], "", messages=turns))


def test_rounds_of_a_simple_model_and_the_sums_of_several_calls(tmp_path: Path) -> None:
    drawn, pair, record = scenes(), load_shipped(NAME), tmp_path / "new" / "costs.json"
    lm = model(f",method=idpruner,keep=0.25,record={record}", simple=True)
    texts_of = [question.text for question in drawn[0].questions[:2]]

    def next_text(doc: Any, round_idx: int, previous_output: Any, previous_round_info: Any) -> Any:
        return [drawn[1].image], texts_of[1], round_idx == 2, previous_output, None

    arguments = (texts_of[0], {"max_new_tokens": 8}, lambda _: [drawn[0].image], next_text, 0, "t", "test")
    request = Instance("generate_until_multi_round", arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1})
    reset_logged_metrics()
    found = [lm.generate_until_multi_round([request])[0] for _ in range(2)]
    with foveate.prune(pair[0], "idpruner", keep=0.25):
        pictures = (drawn[0].image, drawn[1].image)
        wanted = [alone(pair, Prompt([one], text)) for one, text in zip(pictures, texts_of, strict=True)]
    assert found == [wanted, wanted]
    told, logged = json.loads(record.read_text()), summarize_logged_metrics()
    assert told["sums"]["questions"] == 4
    assert logged["total_elapsed_time"] == pytest.approx(told["sums"]["seconds"])
    assert logged["total_gen_tokens"] == told["sums"]["answer_tokens"]
    assert logged["avg_visual_tokens"] == told["means"]["visual_tokens"] == 49


def test_what_does_not_go_together_is_asked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, lm = scenes(), model(",method=idpruner,keep=0.25")
    made = [user(scene.questions[0].text, scene.image) for scene in drawn[:3]]
    wanted = texts(lm.generate_until(chat(made, {"max_new_tokens": 8})))
    answer, sizes = lm.engine._answer, []

    def only_one(prompts: Any, options: GenerationOptions) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 1:
            raise ModelError("of different shapes")
        return answer(prompts, options)

    monkeypatch.setattr(lm.engine, "_answer", only_one)
    assert texts(lm.generate_until(chat(made, {"max_new_tokens": 8}))) == wanted
    assert sizes == [3, 1, 1, 1]


def test_a_clip_file_is_read_as_lmms_eval_reads_it(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path, drawn = tmp_path / "clip.mp4", scenes()[0].image
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height = drawn.size
        for angle in range(10):
            for packet in stream.encode(av.VideoFrame.from_image(drawn.rotate(angle))):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    reader = model(",max_num_frames=4", "testbed-qwen2.5-vl").reader
    prompt = reader.read_visuals([str(path)], "What moves?")
    assert prompt.video and [one.size for one in prompt.pictures] == [drawn.size] * 4


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (",method=idpuner,keep=0.25", MethodError, "did you mean 'idpruner'"),
        (",method=idpruner", ConfigError, "give one, such as keep=0.25"),
        (",method=idpruner,keep=2.5", BudgetError, "out of range"),
        (",method=idpruner,keep=0.25,balanse=0.5", ConfigError, "did you mean 'balance'"),
        (",method=idpruner,keep=0.25,balance=much", MethodError, "balance of idpruner is"),
        (",method=unpruned,keep=0.25", ConfigError, "keeps everything"),
        (",method=downsample,keep=auto", ConfigError, "before it is encoded"),
        (",method=idpruner,keep=0.25,max_num_frames=0", ConfigError, "at least 1"),
        (",fps=0", ConfigError, "fps=0 is not a number above 0"),
        (",max_pixels=many", ConfigError, "max_pixels=many is not a whole number"),
        (",config=nowhere", ConfigError, "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, arguments: str, error: type[FoveateError], says: str
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("foveate.data.loading.load", load)
    with pytest.raises(error, match=says):
        model(arguments)
    with pytest.raises(ConfigError, match="batch_size=auto"):
        model(batch="auto")  # type: ignore[arg-type]


def test_arguments_of_loading_reach_the_model() -> None:
    lm = model(
        ",dtype=bfloat16,attn_implementation=eager,device=cpu,min_pixels=3136,max_pixels=6272", "testbed-qwen2.5-vl"
    )
    assert lm.engine.model.dtype == torch.bfloat16 and lm.engine.model.config._attn_implementation == "eager"
    question = scenes()[0].questions[0].text
    (found,) = lm.generate_until(chat([user(question, Image.new("RGB", (112, 112)))], {"max_new_tokens": 2}))
    images = lm.engine.processor.image_processor
    most = 6272 / (images.patch_size * images.merge_size) ** 2
    assert most / 2 <= found.token_counts.costs["visual_tokens"] <= most < 196
    with pytest.raises(ModelError, match="size of its own"):
        model(",max_pixels=6272")


def test_pruning_and_memory_are_let_go() -> None:
    lm = model(",method=idpruner,keep=0.25")
    loaded = lm.engine.model
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in loaded.modules())
    lm.clean()
    assert lm.engine.model is None and hooks > 0
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in loaded.modules())
