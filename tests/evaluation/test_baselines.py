"""Smaller pictures: their shapes, and what reaches the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image

import foveate
import tiny_families
import tiny_models as zoo_module
from foveate.data.prompts import Prompt, encode
from foveate.data.samples import Sample
from foveate.errors import MethodError
from foveate.evaluation import inference as answering
from foveate.evaluation.baselines import Corner, downsample, enlarge_box, shrink_grid
from foveate.evaluation.inference import Examinee
from foveate.evaluation.runs import Run
from foveate.models import adapter_of
from foveate.testbed import load_shipped, scenes
from foveate.tokens import Grid, VisualTokens


@pytest.mark.parametrize("grid", [Grid(14, 14), Grid(3, 11), Grid(9, 4), Grid(1, 7), Grid(4, 6, 3)])
def test_shapes_fill_the_budget_and_keep_their_looks(grid: Grid) -> None:
    for count in range(1, len(grid) + 1):
        made = shrink_grid(grid, count)
        share = max(1, count // grid.frames)
        fits = [
            (rows, columns)
            for rows in range(1, grid.rows + 1)
            for columns in range(1, grid.columns + 1)
            if rows * columns <= share
        ]
        assert (made.rows, made.columns) in fits and made.frames == grid.frames
        most = max(rows * columns for rows, columns in fits)
        assert made.rows * made.columns >= min(0.9 * share, most)
    assert shrink_grid(grid, len(grid)) == grid
    assert shrink_grid(Grid(14, 14), 49) == Grid(7, 7) and shrink_grid(Grid(14, 14), 20) == Grid(4, 5)


def test_the_corner_is_kept() -> None:
    grids = (Grid(4, 6), Grid(2, 2))
    tokens = VisualTokens(torch.randn(2, 24, 3), tuple((grid,) for grid in grids))
    corner = Corner("25%")
    assert corner.counts(tokens).tolist() == [6, 1]
    keep = corner.select(tokens, corner.counts(tokens)).keep
    assert keep[0].view(4, 6)[:2, :3].all() and int(keep[0].sum()) == 6
    assert keep[1].nonzero().flatten().tolist() == [0]


def test_a_fixed_tower_sees_the_picture_in_its_corner() -> None:
    model, processor = load_shipped()
    prompts = [
        Prompt([scenes()[0].image], "what colour is the sign?"),
        Prompt([scenes()[1].image], "how many stars are there?"),
    ]
    inputs = encode(model, processor, prompts)
    made, method, keep, factors = downsample(model, processor, prompts, inputs, "25%")
    assert factors == [(2.0, 2.0)] * 2
    pixels, before = made["pixel_values"], inputs["pixel_values"]
    assert pixels.shape == before.shape and torch.equal(made["input_ids"], inputs["input_ids"])
    assert not pixels[..., 56:, :].any() and not pixels[..., :, 56:].any()
    means = torch.nn.functional.avg_pool2d(before, 2)
    assert (pixels[..., :56, :56] - means).abs().mean() < 0.1 * means.abs().mean()
    with foveate.prune(model, method, keep) as pruning, torch.no_grad():
        model(**made)
        report = pruning.report()
    assert [image.tokens for image in report.images] == [49, 49]
    assert report.images[0].kept.view(14, 14)[:7, :7].all()


class Processed:
    """The zoo's processor as `encode` calls one, for chats of one picture."""

    def __init__(self, zoo: zoo_module.Zoo, side: int = 0) -> None:
        self.zoo, self.side, self.tokenizer, self.chat_template = zoo, side, zoo.tokenizer, "there is one"

    def apply_chat_template(self, messages: Any, **_: Any) -> dict[str, Any]:
        *shown, asked = messages[0]["content"]
        images = [part["image"] for part in shown]
        if self.side:
            images = [image.resize((self.side, self.side)) for image in images]
        return zoo_module.inputs(self.zoo, [images], [asked["text"]])


@pytest.mark.parametrize("maker", [zoo_module.qwen2_vl, zoo_module.qwen2_5_vl, zoo_module.qwen3_vl])
def test_a_picture_of_any_size_is_made_smaller(maker: Any) -> None:
    zoo = maker()
    cell = zoo.processor.image_processor.patch_size * 2
    pictures = [Image.new("RGB", (8 * cell, 4 * cell)), Image.new("RGB", (4 * cell, 4 * cell))]
    prompts = [Prompt([picture], "what?") for picture in pictures]
    inputs = encode(zoo.model, Processed(zoo), prompts)
    assert [len(grid) for grid in adapter_of(zoo.model).grids(inputs)["image"]] == [32, 16]
    made, method, keep, factors = downsample(zoo.model, Processed(zoo), prompts, inputs, "25%")
    assert factors == [(2.0, 2.0), (2.0, 2.0)]
    assert adapter_of(zoo.model).grids(made)["image"] == [Grid(2, 4), Grid(2, 2)]
    assert (method, keep) == ("stride", 1.0)
    with pytest.raises(MethodError, match="enlarges small pictures"):
        downsample(zoo.model, Processed(zoo, 4 * cell), prompts, inputs, "25%")


def test_pictures_in_tiles_of_the_models_choice_are_refused() -> None:
    zoo = tiny_families.llava_next()
    inputs = zoo_module.inputs(zoo, [[zoo_module.picture()]])
    with pytest.raises(MethodError, match="sees each picture in tiles of its own choice"):
        downsample(zoo.model, zoo.processor, [], inputs, "25%")


def test_boxes_are_named_in_the_picture_as_it_was() -> None:
    assert enlarge_box("<4> <10> <6> <20>", (2.0, 1.5)) == "8 15 12 30"
    assert enlarge_box("nowhere", (2.0, 1.5)) == "nowhere"
    assert enlarge_box("0.1 0.2 0.5 1", (2.0, 1.5)) == "0.1 0.2 0.5 1"  # shares of the sides
    sample = Sample("1", "what colour is the sign?", ("1 2 3 4",), (scenes()[0].image,), metric="iou")
    known = replace(sample, boxes=(((0.0, 0.0, 8.0, 8.0),),))
    examinee = Examinee(*load_shipped(), 1)
    with patch.object(answering, "decode", lambda *_: ["1 2 3 4", "1 2 3 4"]):
        (cell,) = examinee.cells(0, [sample, known], [Run("downsample", "25%")])
    assert cell.answers == ["2 4 6 8", "2 4 6 8"]
