"""Which visual tokens are evidence for an answer: by boxes that the data give, or by what the frozen model tells.

``"attention"``: what the last prompt token reads of a visual token, mean over the heads and over all layers with
attention but the last. ``"gradient"``: how fast the loss of the answer changes with the logarithm of the weight that a
token has in all attention, at the weight 1 of the whole prompt. Of both, the largest of each image are the evidence.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...api import prune
from ...budget import AUTO, Budget
from ...data.boxes import Box
from ...data.geometry import tile_layout, visible_edges
from ...data.prompts import collate, move_to_model
from ...data.samples import Sample
from ...grouping import TokenGroups
from ...methods import Method, Where
from ...methods.toolkit.base import NO_PROVENANCE
from ...models import adapter_of
from ...models.llava_next import TiledGrid
from ...runtime.prompt import locate
from ...selection import topk
from ...tokens import Cue, Grid, Selection, VisualTokens
from ..checkpoint import TrainingError
from ..scorer.data import Example, answer_losses, batch_of
from ..scorer.gates import apply_gate


@dataclass(frozen=True)
class PictureBoxes:
    """Boxes in one picture, or in one clip.

    Attributes:
        boxes: for each frame, of a picture one.
        size: width and height of the picture.
        edges: of the part of it that the token grid covers, see `visible_edges`.
    """

    boxes: tuple[tuple[Box, ...], ...]
    size: tuple[int, int]
    edges: Box


def boxes_of(processor: Any, sample: Sample) -> tuple[PictureBoxes, ...]:
    """The boxes of each picture of a sample, or of its clip; none where it has no boxes."""
    if not sample.boxes:
        return ()
    sizes = [picture.size for picture in sample.open()]
    edges = [visible_edges(size, getattr(processor, "image_processor", None)) for size in sizes]
    if sample.video:
        return (PictureBoxes(sample.boxes, sizes[0], edges[0]),)
    one_each = zip(sample.boxes, sizes, edges, strict=True)
    return tuple(PictureBoxes((boxes,), size, edge) for boxes, size, edge in one_each)


def covered(pictures: Sequence[PictureBoxes], grids: Sequence[Grid]) -> list[Tensor]:
    """Which tokens show part of a box: (n,) bool for each grid of a prompt.

    Args:
        pictures: of the prompt.
        grids: in order; one for each picture, or several where pictures are cut into tiles.

    Raises:
        TrainingError: where it cannot be told which grids are of which picture.
    """
    if len(grids) == len(pictures):
        return [_covered(grid, one.boxes, one.edges) for grid, one in zip(grids, pictures, strict=True)]
    if len(grids) == 2 * len(pictures) and all(isinstance(grid, TiledGrid) for grid in grids[1::2]):
        twice = [one for one in pictures for _ in range(2)]  # an overview, and the whole again in tiles
        return [_covered(grid, one.boxes, (0, 0, *one.size)) for grid, one in zip(grids, twice, strict=True)]
    if len(pictures) != 1:
        raise TrainingError(
            f"this model cuts pictures into tiles, and {len(grids)} of {len(pictures)} pictures cannot be told apart; "
            "give boxes of questions about one picture alone."
        )
    (one,) = pictures
    rows, columns = tile_layout(len(grids), one.size)
    width, height = one.size[0] / columns, one.size[1] / rows
    parts: list[Box] = [
        (column * width, row * height, (column + 1) * width, (row + 1) * height)
        for row in range(rows)
        for column in range(columns)
    ]
    return [_covered(grid, one.boxes, part) for grid, part in zip(grids, [*parts, (0, 0, *one.size)], strict=False)]


def _covered(grid: Grid, boxes: Sequence[Sequence[Box]], edges: Box) -> Tensor:
    """(n,) bool of one grid that lies on the part `edges` of the picture; frames of a clip may share tokens."""
    shown = torch.zeros(grid.frames, grid.rows, grid.columns, dtype=torch.bool)
    shared = max(1, len(boxes) // grid.frames)
    lines = [
        [low + (high - low) * step / steps for step in range(steps + 1)]
        for low, high, steps in ((edges[0], edges[2], grid.columns), (edges[1], edges[3], grid.rows))
    ]
    for frame, in_frame in enumerate(boxes):
        for box in in_frame:
            columns, rows = (
                torch.tensor([a < box[axis + 2] and b > box[axis] for a, b in itertools.pairwise(line)])
                for axis, line in enumerate(lines)
            )
            shown[min(frame // shared, grid.frames - 1)] |= rows[:, None] & columns
    return shown.flatten()


@dataclass(frozen=True)
class _Reader(Method):
    """Keeps everything, and remembers the attention that it is shown."""

    where = Where.INSIDE_LLM

    layer: int = 1
    rows: tuple[int, ...] = ()
    seen: list[Tensor] = field(default_factory=list)

    name = "reader"
    provenance = NO_PROVENANCE

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.LLM_READINGS})

    @property
    def llm_readings(self) -> tuple[int, ...]:
        return self.rows

    def counts(self, tokens: VisualTokens) -> Tensor:
        return tokens.valid.sum(1)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        self.seen.append(tokens.cue(Cue.LLM_READINGS).mean(-1))
        return Selection(tokens.valid)


@torch.no_grad()
def read_attention(model: nn.Module, examples: Sequence[Example], padding: int) -> Tensor:
    """(G, N) float32: the attention of the last prompt token to the tokens of each image, see above."""
    adapter = adapter_of(model)
    last = min(len(adapter.text.layers) - 1, adapter.deepest_stage)
    reader = _Reader(layer=last, rows=tuple(layer for layer in adapter.attention_layers if layer < last))
    inputs = move_to_model(collate([example.inputs for example in examples], padding), model)
    with prune(model, reader, keep=AUTO):
        model(**inputs, use_cache=False, logits_to_keep=1)
    return reader.seen.pop()


@torch.enable_grad()
def read_gradient(model: nn.Module, examples: Sequence[Example], padding: int) -> Tensor:
    """(G, N) float32: size of the gradient of each answer's loss by its prompt's visual tokens, see above.

    Raises:
        TrainingError: for an attention that takes no mask of any values.
    """
    adapter = adapter_of(model)
    kind = str(adapter.text.config._attn_implementation)
    if kind not in ("sdpa", "eager"):
        raise TrainingError(
            f"labels='gradient' needs attention that takes a mask of any values, which {kind!r} does not; load the "
            "model with attn_implementation='sdpa', or use labels='attention'."
        )
    inputs, labels = batch_of(examples, padding)
    inputs = move_to_model(inputs, model)
    ids: Tensor = inputs["input_ids"]
    logs = torch.zeros(ids.shape, device=ids.device, requires_grad=True)
    hook = adapter.text.register_forward_pre_hook(
        lambda module, args, kwargs: (args, apply_gate("attention", adapter, kwargs, logs)), with_kwargs=True
    )
    try:
        (gradient,) = torch.autograd.grad(answer_losses(model, inputs, labels).sum(), logs)
    finally:
        hook.remove()
    groups = TokenGroups.of(locate(adapter, ids, inputs), Budget(AUTO))
    rows, index = groups.padded_index(gradient.device)
    return gradient.abs()[rows[:, None], index.clamp_min(0)].masked_fill(index < 0, 0.0)


def largest(values: Tensor, valid: Tensor, share: float) -> Tensor:
    """(G, N) bool: the largest values of each row, so many of its valid ones, at least one."""
    count = (share * valid.sum(1) + 0.5).long().clamp_min(1)
    return topk(values, count, valid=valid)
