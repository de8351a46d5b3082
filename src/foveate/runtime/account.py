"""From what one forward recorded to its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..methods.editing import AttentionEdit
from ..models import ModelAdapter
from .cost import CostModel
from .prompt import Span
from .report import ImageReport, Report, StageReport
from .step import Step


def account(
    step: Step,
    adapter: ModelAdapter,
    cost: CostModel,
    dtype_bytes: int,
    stages: Sequence[StageReport],
    edits: Mapping[int, Sequence[AttentionEdit]],
) -> Report:
    """The report of the forward that `step` recorded, with what its stages were asked to keep.

    Edited layers are charged with what they compute here, once more for each of their `edits`.
    """
    decoder: Any = adapter.text.layers
    layers = len(decoder)
    # Between two pruning layers all layers cost the same.
    starts = [0, *sorted(layer for layer in step.inside if layer > 0)]
    lengths: list[list[int]] = []
    visual: list[int] = []
    for start, end in zip(starts, [*starts[1:], layers], strict=True):
        place = step.places(start + 1)
        left = sum(int(_alive(span, place).sum()) for span in step.spans)
        lengths += [_lengths(step, start)] * (end - start)
        visual += [left] * (end - start)
    final = step.places(layers)
    images = []
    for span in step.spans:
        kept = _alive(span, final)
        images.append(ImageReport(span.row, span.modality, span.grid, len(span.grid), int(kept.sum()), kept))
    full = [step.lengths] * layers
    watches = (step.encoder_watch, step.selection_watch, step.prefill_watch)
    encoder, selection, prefill = (0.0 if watch is None else watch.seconds for watch in watches)
    return Report(
        images,
        step.lengths,
        lengths[-1],
        visual,
        cost.text_flops(full),
        cost.text_flops(lengths, {layer: len(asked) for layer, asked in edits.items()}),
        cost.vision_flops([span.grid for span in step.spans]),
        cost.vision_flops([span.grid for span in step.spans], step.seen),
        cost.kv_bytes(full, dtype_bytes),
        cost.kv_bytes(lengths, dtype_bytes),
        encoder,
        selection,
        prefill,
        tuple(stages),
    )


def _alive(span: Span, place: Tensor | None) -> Tensor:
    """Keep mask (N,) of one image or clip."""
    kept = torch.ones_like(span.index, dtype=torch.bool) if place is None else place[span.row, span.index] >= 0
    return kept.cpu()


def _lengths(step: Step, layer: int) -> list[int]:
    """Real tokens of each prompt in one layer."""
    stage = step.stage_below(layer + 1)
    kept = step.kept_before if stage is None else step.inside[stage]
    return step.lengths if kept is None else kept.valid.sum(1).tolist()
