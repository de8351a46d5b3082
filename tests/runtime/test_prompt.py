"""Where images lie in a prompt: counted from grids, whatever surrounds the placeholders."""

from __future__ import annotations

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.grouping import TokenGroups
from foveate.models import adapter_of
from foveate.runtime.prompt import locate
from tiny_models import Zoo

from .helpers import pair, visual


def test_adjacent_images_are_told_apart_by_their_grids(llava: Zoo) -> None:
    inputs = zoo_module.inputs(llava, [[zoo_module.picture(seed=s) for s in (0, 1)], [zoo_module.picture(seed=2)]])
    spans = locate(adapter_of(llava.model), inputs["input_ids"], inputs)
    assert [(span.row, span.order, len(span.grid)) for span in spans] == [(0, 0, 16), (0, 1, 16), (1, 2, 16)]
    for row in (0, 1):
        together = torch.cat([span.index for span in spans if span.row == row])
        assert together.tolist() == visual(llava, inputs)[row].nonzero()[:, 0].tolist()


def test_beams_repeat_the_rows_of_images_that_were_encoded_once(zoo: Zoo) -> None:
    inputs = pair(zoo)
    repeated = {k: v.repeat_interleave(3, 0) if k == "input_ids" else v for k, v in inputs.items()}
    adapter = adapter_of(zoo.model)
    once, thrice = locate(adapter, inputs["input_ids"], inputs), locate(adapter, repeated["input_ids"], repeated)
    assert [(s.row // 3, s.order, s.grid) for s in thrice] == [(s.row, s.order, s.grid) for s in once for _ in range(3)]


def test_images_of_earlier_turns_are_left_out(qwen: Zoo) -> None:
    """On a continued conversation the grids still list images whose placeholders are already cached."""
    first = zoo_module.inputs(qwen, [[zoo_module.picture(84, 112, 0)]])
    second = zoo_module.inputs(qwen, [[zoo_module.picture(56, 140, 1)]])
    grids = {"image_grid_thw": torch.cat([first["image_grid_thw"], second["image_grid_thw"]])}
    (span,) = locate(adapter_of(qwen.model), second["input_ids"], grids)
    assert (span.grid.rows, span.grid.columns) == (2, 5)


def test_placeholders_that_do_not_add_up_are_an_error(zoo: Zoo) -> None:
    inputs = pair(zoo)
    ids = inputs["input_ids"].clone()
    ids[0, visual(zoo, inputs)[0].nonzero()[0]] = 20
    with pytest.raises(foveate.ModelError, match="pass the processor's inputs unchanged"):
        locate(adapter_of(zoo.model), ids, inputs)


def test_pools_are_padded_with_minus_one(zoo: Zoo) -> None:
    inputs = pair(zoo)
    spans = locate(adapter_of(zoo.model), inputs["input_ids"], inputs)
    rows, index = TokenGroups([[span] for span in spans], []).padded_index(torch.device("cpu"))
    assert rows.tolist() == [0, 1]
    assert [(row >= 0).sum().item() for row in index] == [len(span.grid) for span in spans]
