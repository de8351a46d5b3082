"""Merging drawn as merging: where tokens went, against what methods select, and what the picture shows of it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import foveate
import tiny_models as zoo_module
from foveate.tokens import Grid
from foveate.visualize import merge_targets, overlay, record_selections, scale_to_grid, tile_layout

GRID = Grid(2, 4)
MERGED = ("avgpool", "tome", "anchormerge")


@pytest.mark.parametrize("name", [*MERGED, "visionzip", "idpruner", "cenprune", "fastv", "random"])
def test_watching_changes_nothing(name: str) -> None:
    zoo = zoo_module.llava()
    inputs = zoo_module.inputs(zoo, [[zoo_module.picture(56, 84)]], ["what is it?"])
    method = foveate.get_method(name, **({"base": "divprune"} if name == "cenprune" else {}))
    logits = []
    for one in (method, observed := record_selections(method)):
        with foveate.prune(zoo.model, one, keep=0.25) as pruning, torch.no_grad():
            logits.append(zoo.model(**inputs).logits)
            report = pruning.report()
    assert torch.equal(*logits)
    assert report.stages[0].method == name
    target, kept = merge_targets(observed, 0, report.tokens_before), report.images[0].kept
    if name in MERGED:
        assert target is not None and bool((target >= 0).all())
        assert torch.equal(target[kept], kept.nonzero()[:, 0])  # kept tokens are their own
        assert bool(kept[target].all())  # every token flows into a kept one
    elif name != "visionzip":
        assert target is None


def test_merged_cells_have_the_mean_colour_of_their_group() -> None:
    picture = Image.new("RGB", (400, 200), (200, 40, 0))
    picture.paste((0, 40, 200), (200, 0, 400, 200))
    kept = torch.zeros(8, dtype=torch.bool)
    kept[0] = True
    whole = overlay(picture, GRID, kept, target=torch.zeros(8, dtype=torch.long))
    left, right = (whole.getpixel((int(whole.width * x), whole.height * 3 // 4)) for x in (0.375, 0.875))
    assert left == (140, 40, 60) and right == (60, 40, 140)  # 0.6 of (100, 40, 100) and 0.4 of their own
    some = overlay(picture, GRID, kept, target=torch.tensor([0, 0, 0, -1, 0, 0, 0, -1]))
    dropped = some.getpixel((int(some.width * 0.875), some.height * 3 // 4))
    assert dropped != right and max(dropped) - min(dropped) < 20  # grey


@pytest.mark.parametrize("colour", [(255, 88, 36), (255, 255, 255), (0, 0, 0), (128, 128, 128)])
def test_the_outline_is_seen_on_any_colour(colour: tuple[int, int, int]) -> None:
    picture = Image.new("RGB", (400, 200), colour)
    kept = torch.zeros(8, dtype=torch.bool)
    kept[1] = True
    plain, drawn = scale_to_grid(picture, GRID), overlay(picture, GRID, kept)
    cell = plain.width // GRID.columns
    row = [drawn.getpixel((x, plain.height // 4)) for x in range(cell, cell + cell // 4)]
    assert max(max(abs(a - b) for a, b in zip(one, colour, strict=True)) for one in row) > 100


def test_tiles_lie_as_the_processor_cut_them() -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    cut = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, min_patches=1, max_patches=12)
    for size in ((28, 28), (100, 28), (28, 100), (90, 60), (61, 90), (200, 190), (500, 10)):
        picture = Image.new("RGB", size)
        for row in range(size[1]):
            for column in range(size[0]):
                picture.putpixel((column, row), (255 * column // size[0], 255 * row // size[1], 0))
        made = cut(images=[picture], crop_to_patches=True, return_tensors="pt")
        rows, columns = tile_layout(int(made["num_patches"][0]), size)
        assert rows * columns == max(1, len(made["pixel_values"]) - 1)
        means = made["pixel_values"][: rows * columns].mean((2, 3)).view(rows, columns, 3)
        assert bool((means[:, 1:, 0] > means[:, :-1, 0]).all() and (means[1:, :, 1] > means[:-1, :, 1]).all())
