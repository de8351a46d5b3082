"""The account of one prefill: what was kept and what it saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..budget import Budget
from ..grouping import Span
from ..methods.toolkit.interventions import AttentionEdit
from ..models import ModelAdapter
from ..tokens import Grid
from .cost import CostModel
from .state import ForwardState


@dataclass(frozen=True)
class ImageReport:
    """One image or clip: visual tokens `before` and `after`, and the keep mask (N,) in raster order."""

    prompt: int
    modality: str
    grid: Grid
    before: int
    after: int
    kept: Tensor


@dataclass(frozen=True)
class StageReport:
    """One stage: a method, the layer whose input it shortens (0: before the LLM, -1: the encoder), and its budget."""

    method: str
    layer: int
    budget: Budget


@dataclass(frozen=True)
class Report:
    """The latest prefill.

    Prompt tokens are those left in the last layer, per prompt; visual tokens per layer are of all prompts together.
    FLOPs count the whole prefill, text and vision tower included (see `foveate.runtime.cost`); KV bytes count real
    tokens. Seconds are of the encoder, of selecting, and of the language model's forward without selecting. Stages tell
    what each was asked to keep of the unpruned images.
    """

    images: list[ImageReport]
    prompt_tokens_before: list[int]
    prompt_tokens: list[int]
    visual_tokens_per_layer: list[int]
    text_flops_before: float
    text_flops: float
    vision_flops_before: float
    vision_flops: float
    kv_bytes_before: int
    kv_bytes: int
    encoder_seconds: float
    selection_seconds: float
    prefill_seconds: float
    stages: tuple[StageReport, ...] = ()

    @property
    def tokens_before(self) -> int:
        """Visual tokens of all images before pruning."""
        return sum(image.before for image in self.images)

    @property
    def tokens(self) -> int:
        """Visual tokens of all images after pruning."""
        return sum(image.after for image in self.images)

    @property
    def average_visual_tokens(self) -> float:
        """Mean over the layers, so that pruning late is not taken for pruning early at the same ratio."""
        return sum(self.visual_tokens_per_layer) / len(self.visual_tokens_per_layer)

    def __str__(self) -> str:
        flops_before, flops = self.text_flops_before + self.vision_flops_before, self.text_flops + self.vision_flops
        return (
            f"{len(self.images)} image{'' if len(self.images) == 1 else 's'}: "
            f"{self.tokens_before} -> {self.tokens} visual tokens "
            f"({self.average_visual_tokens:.4g} on average over the layers); "
            f"prefill {flops_before / 1e9:.3g} -> {flops / 1e9:.3g} GFLOPs (vision {self.vision_flops / 1e9:.3g}); "
            f"KV cache {self.kv_bytes_before / 1e6:.3g} -> {self.kv_bytes / 1e6:.3g} MB; "
            f"encoder {self.encoder_seconds * 1e3:.3g} ms, selection {self.selection_seconds * 1e3:.3g} ms, "
            f"prefill {self.prefill_seconds * 1e3:.3g} ms"
        )


def account_of(
    state: ForwardState,
    adapter: ModelAdapter,
    cost: CostModel,
    dtype_bytes: int,
    stages: Sequence[StageReport],
    edits: Mapping[int, Sequence[AttentionEdit]],
) -> Report:
    """The report of the forward that `state` recorded, with what its stages were asked to keep.

    Edited layers are charged with what they compute here, once more for each of their `edits`.
    """
    decoder: Any = adapter.text.layers
    layers = len(decoder)
    # Between two pruning layers all layers cost the same.
    starts = [0, *sorted(layer for layer in state.inside if layer > 0)]
    lengths: list[list[int]] = []
    visual: list[int] = []
    for start, end in zip(starts, [*starts[1:], layers], strict=True):
        place = state.places(start + 1)
        left = sum(int(_alive(span, place).sum()) for span in state.spans)
        lengths += [_lengths(state, start)] * (end - start)
        visual += [left] * (end - start)
    final = state.places(layers)
    images = []
    for span in state.spans:
        kept = _alive(span, final)
        images.append(ImageReport(span.row, span.modality, span.grid, len(span.grid), int(kept.sum()), kept))
    full = [state.lengths] * layers
    return Report(
        images,
        state.lengths,
        lengths[-1],
        visual,
        cost.text_flops(full),
        cost.text_flops(lengths, {layer: len(asked) for layer, asked in edits.items()}),
        cost.vision_flops([span.grid for span in state.spans]),
        cost.vision_flops([span.grid for span in state.spans], state.seen),
        cost.kv_bytes(full, dtype_bytes),
        cost.kv_bytes(lengths, dtype_bytes),
        sum(watch.seconds for watch in state.encoder_watches),
        sum(watch.seconds for watch in state.selection_watches),
        state.prefill_watch.seconds,
        tuple(stages),
    )


def _alive(span: Span, place: Tensor | None) -> Tensor:
    """Keep mask (N,) of one image or clip."""
    kept = torch.ones_like(span.index, dtype=torch.bool) if place is None else place[span.row, span.index] >= 0
    return kept.cpu()


def _lengths(state: ForwardState, layer: int) -> list[int]:
    """Real tokens of each prompt in one layer."""
    stage = state.stage_below(layer + 1)
    kept = state.before if stage is None else state.inside[stage]
    return state.lengths if kept is None else kept.valid.sum(1).tolist()
