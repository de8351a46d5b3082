"""The baseline without pruning: show the model a smaller picture that has as many tokens.

Where the size of a picture decides how many tokens it takes (the Qwen-VL families), the picture itself is made smaller.
Where a tower sees one size only (LLaVA, InternVL), the picture that it would see is shrunk into the upper left corner,
the rest is the mean colour, and only the tokens of that corner are kept; so its encoder saves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..budget import AUTO, Budget
from ..data.boxes import box_of
from ..data.prompts import Prompt, encode
from ..errors import MethodError
from ..methods import Method, Provenance
from ..models import adapter_of
from ..runtime.planner import KeepLike
from ..tokens import Grid, Selection, VisualTokens

_FILLED = 0.9  # of a budget, at least, where a shape that fills it less would be nearer to the picture's


def shrink_grid(grid: Grid, count: int) -> Grid:
    """The grid of a smaller picture: at most `count` tokens in all, at least one a frame.

    Of the shapes that use nine tenths of the budget it is the one whose sides are to each other most nearly as before;
    where none does, the one with the most tokens.
    """
    share = max(1, count // grid.frames)
    shapes = [(rows, min(grid.columns, share // rows)) for rows in range(1, min(grid.rows, share) + 1)]
    most = max(rows * columns for rows, columns in shapes)
    near = [shape for shape in shapes if shape[0] * shape[1] >= min(most, _FILLED * share)]
    rows, columns = min(near, key=lambda shape: abs(math.log(shape[0] * grid.columns / (shape[1] * grid.rows))))
    return Grid(rows, columns, grid.frames)


@dataclass(frozen=True)
class Corner(Method):
    """Keeps the tokens of the upper left corner, which the shrunken picture fills."""

    name = "downsample"
    provenance = Provenance(paper="none (baseline)", licence="foveate's own")

    keep: KeepLike

    def counts(self, tokens: VisualTokens) -> Tensor:
        return torch.tensor([len(self._corner(pool[0])) for pool in tokens.grids])

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        keep = torch.zeros_like(tokens.valid)
        for row, pool in enumerate(tokens.grids):
            corner = self._corner(pool[0])
            places = pool[0].coordinates(keep.device)
            keep[row, : len(places)] = (places[:, 1] < corner.rows) & (places[:, 2] < corner.columns)
        return Selection(keep)

    def _corner(self, grid: Grid) -> Grid:
        return shrink_grid(grid, Budget(self.keep).count(len(grid)))


class Downsampled(NamedTuple):
    """Inputs with smaller pictures, the method and budget to run them with, and how much smaller each prompt's are.

    `factors` has one (horizontal, vertical) pair for each prompt, of its first picture: what a length in the smaller
    one is multiplied with to be that of the larger one.
    """

    inputs: Mapping[str, Tensor]
    method: Method | str
    keep: KeepLike
    factors: list[tuple[float, float]]


def downsample(
    model: Any, processor: Any, prompts: Sequence[Prompt], inputs: Mapping[str, Tensor], keep: KeepLike
) -> Downsampled:
    """The same prompts with smaller pictures.

    Args:
        model: the model, whose adapter knows how many tokens a picture takes.
        processor: its processor.
        prompts: what is asked.
        inputs: of the pictures as they are.
        keep: the budget, for each picture or clip.

    Raises:
        MethodError: where the processor makes small pictures larger again, and for models that see pictures in tiles
            of their own choice.
    """
    budget, grids = Budget(keep), adapter_of(model).grids(inputs)
    if not {"image_grid_thw", "video_grid_thw"} & set(inputs):
        if inputs["pixel_values"].ndim != 4:
            raise MethodError(
                f"downsample: {type(model).__name__} sees each picture in tiles of its own choice, which cannot be "
                "shrunk; choose another baseline, such as 'stride'."
            )
        grid = grids["image"][0]
        corner = shrink_grid(grid, budget.count(len(grid)))
        shown = {**inputs, "pixel_values": _shrink_into_corner(inputs["pixel_values"], grid, corner)}
        return Downsampled(shown, Corner(budget), AUTO, [_factors(grid, corner)] * len(prompts))
    cell = model.config.vision_config.patch_size * model.config.vision_config.spatial_merge_size
    left = {modality: list(own) for modality, own in grids.items()}
    shrunken: list[Prompt] = []
    factors = []
    for prompt in prompts:
        pictures = prompt.pictures
        own = [left["video"].pop(0)] * len(pictures) if prompt.video else [left["image"].pop(0) for _ in pictures]
        sizes = [shrink_grid(grid, budget.count(len(grid))) for grid in own]
        small = [
            picture.resize((cell * size.columns, cell * size.rows), Image.Resampling.BICUBIC)
            for picture, size in zip(pictures, sizes, strict=True)
        ]
        shrunken.append(prompt._replace(pictures=small))
        factors.append(_factors(own[0], sizes[0]))
    made = encode(model, processor, shrunken)
    for modality, own in adapter_of(model).grids(made).items():
        for before, after in zip(grids[modality], own, strict=True):
            if len(after) > max(before.frames, budget.count(len(before))):
                raise MethodError(
                    f"downsample: the processor enlarges small pictures, to {len(after)} tokens where {budget.label} "
                    f"of {len(before)} are allowed; lower the min_pixels of its image processor."
                )
    return Downsampled(made, "stride", 1.0, factors)


def enlarge_box(answer: str, factors: tuple[float, float]) -> str:
    """An answer that names a box in the smaller picture, as one that names it in the larger; others as they are.

    Sides of at most 1 are shares of the picture's, the same in both.
    """
    box = box_of(answer)
    if box is None or max(box) <= 1:
        return answer
    return " ".join(f"{side * factor:g}" for side, factor in zip(box, factors * 2, strict=True))


def _factors(grid: Grid, small: Grid) -> tuple[float, float]:
    return grid.columns / small.columns, grid.rows / small.rows


def _shrink_into_corner(pixels: Tensor, grid: Grid, corner: Grid) -> Tensor:
    """(n, 3, H, W) normalised pixels, each picture shrunk into the upper left corner of nothing but the mean colour."""
    height, width = pixels.shape[-2:]
    size = (height * corner.rows // grid.rows, width * corner.columns // grid.columns)
    canvas = torch.zeros_like(pixels)
    canvas[..., : size[0], : size[1]] = interpolate(pixels.float(), size, mode="bicubic", antialias=True)
    return canvas
