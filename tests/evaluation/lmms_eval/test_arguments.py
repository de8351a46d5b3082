"""What --model_args and generation_kwargs say, read without lmms-eval."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveate
from foveate.data.shipped import load_shipped
from foveate.errors import BudgetError, ConfigError, FoveateError, MethodError
from foveate.evaluation.lmms_eval.arguments import PRUNING, read_choice, read_number, split_arguments
from foveate.evaluation.lmms_eval.generation import GenerationOptions, StopAtTexts, answer_lengths
from foveate.evaluation.lmms_eval.media import MediaError, MediaReader
from foveate.evaluation.lmms_eval.outputs import parse_arguments
from foveate.methods import get_method, method_names
from foveate.methods.toolkit.registry import method_class
from foveate.methods.toolkit.settings import settable


@pytest.mark.parametrize(
    ("text", "label", "keep", "seed"),
    [
        ("", "unpruned", "", None),
        ("method=unpruned", "unpruned", "", None),
        ("method=blind", "blind", "", None),
        ("method=downsample,keep=25%", "downsample", "25%", None),
        ("method=idpruner,keep=0.25", "idpruner", "25%", None),
        ("method=idpruner,keep=64", "idpruner", "64", None),
        ("method=idpruner,keep=0.1,balance=0.7", "idpruner (balance=0.7)", "10%", None),
        ("method=divprune,keep=0.1,scope=prompt", "divprune (scope=prompt)", "10%", None),
        ("method=random,keep=0.1,seed=3", "random", "10%", 3),
        ("method=random,keep=0.1", "random", "10%", 0),
    ],
)
def test_runs(text: str, label: str, keep: str, seed: int | None) -> None:
    about, rest = split_arguments(parse_arguments(f"pretrained=a/model,{text}"))
    run = read_choice(about).run
    assert rest == {"pretrained": "a/model"}
    assert (run.label, run.keep, run.seed) == (label, keep, seed)


def test_hyperparameters_are_read_as_what_they_are() -> None:
    given = parse_arguments("method=idpruner,keep=0.25,balance=0.7,scorer='a/scorer'")
    config = read_choice(given).config
    assert config is not None and config.method == get_method("idpruner", balance=0.7, scorer="a/scorer")
    layered = read_choice(parse_arguments('method=pyramiddrop,keep=0.25,layers="1,3"')).config
    assert layered is not None and layered.method == get_method("pyramiddrop", layers=(1, 3))


def test_a_configuration_file(tmp_path: Path) -> None:
    config = foveate.PruningConfig(get_method("divprune"), keep=0.1, scope="prompt")
    config.save_pretrained(tmp_path)
    choice = read_choice({"config": str(tmp_path)})
    assert choice.config == config and (choice.run.label, choice.run.keep) == ("divprune", "10%")


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"method": "idpuner", "keep": 0.25}, MethodError, "did you mean 'idpruner'"),
        ({"method": "downsampel", "keep": 0.25}, MethodError, "did you mean 'downsample'"),
        ({"method": 3, "keep": 0.25}, MethodError, "unknown method 3"),
        ({"method": "idpruner"}, ConfigError, r"such as keep=0\.25"),
        ({"method": "idpruner", "keep": 1.5}, BudgetError, "keep=1.5"),
        ({"method": "idpruner", "keep": 0.25, "balance": "much"}, MethodError, "balance of idpruner is"),
        ({"method": "unpruned", "keep": 0.25}, ConfigError, "keeps everything"),
        ({"method": "blind", "keep": 0.25}, ConfigError, "shows no picture"),
        ({"method": "downsample"}, ConfigError, "needs a budget"),
        ({"method": "downsample", "keep": "auto"}, ConfigError, "before it is encoded"),
        ({"method": "downsample", "keep": 0.5, "scope": "prompt"}, ConfigError, "has no scope"),
        ({"keep": 0.25}, ConfigError, "keep is given without a method"),
        ({"config": "nowhere"}, ConfigError, "nowhere"),
        ({"config": "nowhere", "keep": 0.25}, ConfigError, "says what keep says"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], error: type[FoveateError], says: str) -> None:
    with pytest.raises(error, match=says):
        read_choice(given)


def test_numbers() -> None:
    assert read_number("batch_size", "8", whole=True) == 8 and read_number("fps", 0.5) == 0.5
    for value in ("auto", 0, -3, 2.5, None, True):
        with pytest.raises(ConfigError, match=f"max_num_frames={value} is not a whole number of at least 1; give one"):
            read_number("max_num_frames", value, whole=True)
    for value in ("often", 0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"fps={value} is not a number above 0; give one"):
            read_number("fps", value)


def test_no_hyperparameter_has_the_name_of_an_argument() -> None:
    own = {*PRUNING, "pretrained", "batch_size", "device", "device_map", "dtype", "attn_implementation"}
    own |= {"model_revision", "min_pixels", "max_pixels", "max_num_frames", "fps", "system_prompt", "record"}
    assert not {name: taken for name in method_names() if (taken := own & settable(method_class(name)).keys())}


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, GenerationOptions()),
        ({"until": ["\n\n"], "do_sample": False}, GenerationOptions()),
        ({"until": ["\n\n", "###"]}, GenerationOptions(until=("\n\n", "###"))),
        ({"until": "###", "max_new_tokens": 16}, GenerationOptions(until=("###",), max_new_tokens=16)),
        ({"temperature": 0.7, "do_sample": False}, GenerationOptions(temperature=0.7)),
        ({"do_sample": True, "top_p": 0.9}, GenerationOptions(temperature=None, top_p=0.9)),
        ({"num_beams": 3, "top_k": 5, "repetition_penalty": 1.1}, GenerationOptions((), 4096, 0.0, None, 5, 3, 1.1)),
    ],
)
def test_generation_options(given: dict[str, Any], options: GenerationOptions) -> None:
    assert GenerationOptions.of(given) == options


def test_options_that_are_not_known_are_named_and_bad_ones_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "foveate"):
        GenerationOptions.of({"image_aspect_ratio": "original"})
        GenerationOptions.of({"image_aspect_ratio": "original"})
    assert [record.getMessage().count("image_aspect_ratio") for record in caplog.records] == [1]
    for bad in ({"temperature": -1.0}, {"max_new_tokens": -1}, {"num_beams": -2}):
        with pytest.raises(ConfigError):
            GenerationOptions.of(bad)


def test_answers_end_where_they_are_told_to() -> None:
    _, processor = load_shipped()
    tokenizer = processor.tokenizer
    ids = tokenizer(["red blue", "blue blue"], add_special_tokens=False, return_tensors="pt")["input_ids"]
    padded = torch.cat([torch.full((2, 3), tokenizer.pad_token_id), ids], 1)
    assert StopAtTexts(processor, 3, ["red"])(padded, None).tolist() == [True, False]
    assert StopAtTexts(processor, 4, ["red"])(padded, None).tolist() == [False, False]
    assert GenerationOptions(until=("b", "x")).cut(" a b c") == "a"
    assert answer_lengths(torch.tensor([[5, 2, 0], [5, 6, 7]]), 2) == [2, 3]
    assert answer_lengths(torch.tensor([[5, 2, 0], [5, 6, 7]]), [6, 0]) == [3, 2]


def test_messages_and_visuals_become_prompts(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    picture.save(tmp_path / "a.png")
    reader = MediaReader(max_num_frames=3, system_prompt="Be brief.")
    simple = reader.read_visuals([picture, str(tmp_path / "a.png")], "<image>Which?")
    assert len(simple.pictures) == 2 and not simple.video
    assert simple.texts == ["Be brief.", "Which?"]
    parts = [part["type"] for part in simple.messages[1]["content"]]
    assert parts == ["image", "image", "text"]
    between = [{"type": "text", "text": "First"}, {"type": "image", "url": picture}, {"type": "text", "text": "which?"}]
    chat = reader.read_messages([{"role": "user", "content": between}])
    assert [part["type"] for part in chat.messages[1]["content"]] == ["text", "image", "text"]
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(9)]
    clip = reader.read_visuals([frames], "What?")
    assert clip.video and [one.getpixel((0, 0))[0] for one in clip.pictures] == [0, 4, 8]
    for shown, says in (
        ([frames, frames], "2 clips"),
        ([frames, picture], "1 images"),
        (["no.mp4"], "no clip at no.mp4"),
    ):
        with pytest.raises(MediaError, match=says):
            reader.read_visuals(shown, "What?")
    with pytest.raises(MediaError, match="audio"):
        reader.read_visuals([{"array": [], "sampling_rate": 1}], "What?")
