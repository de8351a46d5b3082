"""The account of one prefill: what was kept and what it saved."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..budget import Budget
from ..tokens import Grid


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


@dataclass
class Stopwatch:
    """Adds up the seconds between `start` and `stop`; on a GPU by events, so that nothing waits until `seconds`."""

    device: torch.device
    _marks: list[tuple[object, object]] = field(default_factory=list)
    _started: object | None = None

    def _mark(self) -> object:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        """Begin an interval."""
        self._started = self._mark()

    def stop(self) -> None:
        """End the interval, if one was begun."""
        if self._started is not None:
            self._marks.append((self._started, self._mark()))
            self._started = None

    @property
    def seconds(self) -> float:
        """The sum of all intervals."""
        total = 0.0
        for begin, end in self._marks:
            if isinstance(begin, float) and isinstance(end, float):
                total += end - begin
            else:
                end.synchronize()  # type: ignore[attr-defined]
                total += begin.elapsed_time(end) / 1e3  # type: ignore[attr-defined]
        return total
