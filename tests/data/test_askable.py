"""What a model cannot be asked is found by its line before anything is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from foveate.data.askable import askable
from foveate.data.loading import LoadedModel, load
from foveate.data.prompts import Prompt, encode_one
from foveate.data.samples import Sample, SampleError, read_samples

SIZES = {"fine": (56, 84), "wide": (3000, 4), "tall": (1, 499), "strip": (900, 90), "dot": (1, 1)}


@pytest.fixture(scope="module")
def qwen() -> LoadedModel:
    return load("testbed-qwen2.5-vl")


def written(folder: Path, *lines: tuple[str, str]) -> list[Sample]:
    for name, size in SIZES.items():
        Image.new("RGB", size, (200, 30, 30)).save(folder / f"{name}.png")
    entries = ({"image": f"{name}.png", "question": question, "answer": "red"} for name, question in lines)
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return read_samples(folder)


def test_lines_are_named_all_of_them(qwen: LoadedModel, tmp_path: Path) -> None:
    samples = written(
        tmp_path, ("fine", "colour?"), ("fine", "<|image_pad|> colour?"), ("wide", "colour?"), ("fine", "<|video_pad|>")
    )
    with pytest.raises(SampleError) as caught:
        askable(qwen.processor, samples, [], tmp_path)
    for words in (
        "3 lines of",
        "questions.jsonl",
        "line 2: ",
        "<|image_pad|>",
        "line 3: wide.png",
        "3000 x 4",
        "line 4",
    ):
        assert words in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    left, bad = askable(qwen.processor, samples, [], tmp_path, skip_bad=True)
    assert [sample.where for sample in left] == ["line 1"] and [one.where for one in bad] == [
        "line 2",
        "line 3",
        "line 4",
    ]
    with pytest.raises(SampleError, match="3 lines"):
        askable(qwen.processor, samples[1:], [], tmp_path, skip_bad=True)  # nothing would be left


@pytest.mark.parametrize("name", ["testbed-llava", "testbed-qwen2.5-vl"])
@pytest.mark.parametrize("picture", SIZES)
def test_what_is_found_askable_can_be_asked_and_the_other_cannot(name: str, picture: str, tmp_path: Path) -> None:
    processor = load(name).processor
    samples = written(tmp_path, ("fine", "how many stars are there?"), (picture, "how many stars are there?"))
    left, bad = askable(processor, samples, [], tmp_path, skip_bad=True)
    assert len(left) + len(bad) == 2
    for sample in samples:
        try:
            encode_one(processor, Prompt(sample.open(), sample.question))
            assert sample in left
        except ValueError:
            assert sample not in left
