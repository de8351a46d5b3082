"""From what one forward recorded to its report."""

from __future__ import annotations

from typing import Any

import torch

from ..models import ModelAdapter
from .cost import CostModel
from .report import ImageReport, Report
from .seams import InsideLlm
from .step import Step, place_of


def account(step: Step, adapter: ModelAdapter, cost: CostModel, inside: InsideLlm | None, dtype_bytes: int) -> Report:
    """The report of the forward that `step` recorded."""
    decoder: Any = adapter.text.layers
    layers = len(decoder)
    images = []
    spans = step.spans
    for span in spans:
        here = span.index
        if step.kept_before is not None:
            here = place_of(step.kept_before)[span.row, here]
        if step.kept_inside is not None:
            inner = place_of(step.kept_inside)[span.row]
            here = torch.where(here >= 0, inner[here.clamp_min(0)], here)
        kept = (here >= 0).cpu()
        images.append(ImageReport(span.row, span.modality, span.grid, len(span.grid), int(kept.sum()), kept))
    full = step.lengths
    first = full if step.kept_before is None else step.kept_before.valid.sum(1).tolist()
    rest = first if step.kept_inside is None else step.kept_inside.valid.sum(1).tolist()
    start = inside.layer if inside is not None else layers
    lengths = [first] * start + [rest] * (layers - start)
    watches = (step.encoder_watch, step.selection_watch, step.prefill_watch)
    seconds = [0.0 if watch is None else watch.seconds for watch in watches]
    return Report(
        images,
        full,
        rest,
        cost.text_flops([full] * layers),
        cost.text_flops(lengths),
        cost.vision_flops([span.grid for span in spans]),
        cost.kv_bytes([full] * layers, dtype_bytes),
        cost.kv_bytes(lengths, dtype_bytes),
        *seconds,
    )
