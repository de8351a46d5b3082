"""The account of one prefill: what was kept and what it saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..budget import Budget
from ..errors import RuntimeStateError
from ..grouping import Span
from ..methods import Where
from ..models import ModelAdapter
from ..tokens import Grid
from .cost import CostModel
from .state import ForwardState


@dataclass(frozen=True)
class ImageReport:
    """One image or clip.

    Attributes:
        prompt: the row of the batch that holds it.
        modality: ``"image"`` or ``"video"``.
        grid: of its tokens.
        tokens_before: visual tokens without pruning.
        tokens: visual tokens that are left in the last layer.
        kept: which these are: (N,) bool, in raster order, on the CPU.
    """

    prompt: int
    modality: str
    grid: Grid
    tokens_before: int
    tokens: int
    kept: Tensor = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the mask, as JSON data; ``grid`` is ``{"rows": ..., "columns": ..., "frames": ...}``."""
        grid = {"rows": self.grid.rows, "columns": self.grid.columns, "frames": self.grid.frames}
        rest = {name: getattr(self, name) for name in ("prompt", "modality", "tokens_before", "tokens")}
        return {**rest, "grid": grid}


@dataclass(frozen=True)
class StageReport:
    """One stage: a method, the layer whose input it shortens, its budget, and the place.

    The layer is 0 before the LLM and -1 before the vision encoder; inside the encoder it is the block. A place that is
    not given follows from the layer, which is one of the LLM then.
    """

    method: str
    layer: int
    budget: Budget
    where: Where | None = None

    def __post_init__(self) -> None:
        if self.where is None:
            outside = {-1: Where.BEFORE_ENCODER, 0: Where.BEFORE_LLM}
            object.__setattr__(self, "where", outside.get(self.layer, Where.INSIDE_LLM))

    def __str__(self) -> str:
        return f"{self.method} keeps {self.budget} {self._place}, per {self.budget.scope}"

    @property
    def _place(self) -> str:
        if self.where is Where.INSIDE_ENCODER:
            return f"at block {self.layer} of the vision encoder"
        return f"at layer {self.layer}" if self.where is Where.INSIDE_LLM else self.where.value  # type: ignore[union-attr]

    def to_dict(self) -> dict[str, Any]:
        """JSON data; ``keep`` is in words where a schedule shares it out, as ``str(budget)`` has it.

        Of a stage inside the vision encoder, ``where`` says so, and ``layer`` is the block.
        """
        budget = self.budget
        keep = budget.keep if type(budget) is Budget else str(budget)
        told = {"method": self.method, "layer": self.layer, "keep": keep, "scope": budget.scope}
        return {**told, "where": self.where.value} if self.where is Where.INSIDE_ENCODER else told


@dataclass(frozen=True)
class ExpertReport:
    """Which experts were skipped in a prefill, in pairs of a real token and an expert that the router chose for it.

    Attributes:
        routed_text: pairs of text without skipping, over all layers with experts.
        routed_visual: pairs of visual tokens that were there; those of tokens that were dropped do not count.
        skipped_text: those of text that were skipped.
        skipped_visual: those of visual tokens that were skipped.
        saved_flops: of the pairs that were skipped, or that ran narrower; they are left out of `Report.text_flops`.
    """

    routed_text: int
    routed_visual: int
    skipped_text: int
    skipped_visual: int
    saved_flops: float

    @property
    def skipped(self) -> float:
        """The share of all pairs that was skipped."""
        routed = self.routed_text + self.routed_visual
        return (self.skipped_text + self.skipped_visual) / routed if routed else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {**{one.name: getattr(self, one.name) for one in fields(self)}, "skipped": self.skipped}


@dataclass(frozen=True, repr=False)
class Report:
    """The latest prefill. ``print`` gives a line, and ``repr``, which notebooks show, a table.

    Examples:
        >>> with foveate.prune(model, "divprune", keep=0.25) as pruning:
        ...     output = model.generate(**inputs, max_new_tokens=4)
        >>> report = pruning.report()
        >>> report.tokens_before, report.tokens
        (196, 49)
        >>> round(report.factors()["kv_bytes"], 1)
        3.4

    Prompt tokens are those left in the last layer, per prompt; visual tokens per layer are of all prompts together.
    FLOPs count the whole prefill, text and vision tower included (see `foveate.runtime.cost`); KV bytes count real
    tokens. Seconds are of the encoder, of selecting, and of the language model's forward without selecting. Stages tell
    what each was asked to keep of the unpruned images. `experts` is there where a method sends tokens past experts.
    Where a smaller model reads the prompt first, `guide_flops` and `guide_seconds` are of its pass, and `guide_tokens`
    is how many visual tokens cost as much in all layers of this model, by its weights; the sums of FLOPs, of seconds
    and the average of visual tokens contain them.
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
    experts: ExpertReport | None = None
    guide_tokens: float = 0.0
    guide_flops: float = 0.0
    guide_seconds: float = 0.0

    @property
    def tokens_before(self) -> int:
        """Visual tokens of all images before pruning."""
        return sum(image.tokens_before for image in self.images)

    @property
    def tokens(self) -> int:
        """Visual tokens of all images after pruning."""
        return sum(image.tokens for image in self.images)

    @property
    def average_visual_tokens(self) -> float:
        """Mean over the layers, so that pruning late is not taken for pruning early at the same ratio.

        What the pass of a smaller model costs is added, as so many tokens.
        """
        return sum(self.visual_tokens_per_layer) / len(self.visual_tokens_per_layer) + self.guide_tokens

    @property
    def flops_before(self) -> float:
        """Floating-point operations of text and vision without pruning."""
        return self.text_flops_before + self.vision_flops_before

    @property
    def flops(self) -> float:
        """Floating-point operations of text and vision with pruning."""
        return self.text_flops + self.vision_flops + self.guide_flops

    @property
    def seconds(self) -> float:
        """All that was measured: encoding, selecting, and the language model's forward."""
        return self.encoder_seconds + self.selection_seconds + self.prefill_seconds + self.guide_seconds

    def factors(self, unpruned: Report | None = None) -> dict[str, float]:
        """How many times less the prefill costs than without pruning: 4.0 is a quarter, 1.0 nothing saved.

        Args:
            unpruned: a report of the same prompts with ``keep=1.0``. Only with it is it known how long they take.

        Returns:
            ``tokens`` and ``average_visual_tokens``, ``prompt_tokens``, ``text_flops``, ``flops`` (vision included) and
            ``kv_bytes``; with `unpruned` also ``prefill_seconds`` and ``seconds``, as measured. Where nothing is left
            the factor is infinite.

        Raises:
            RuntimeStateError: where `unpruned` is of other prompts, or was pruned.
        """
        pairs: dict[str, tuple[float, float]] = {
            "tokens": (self.tokens_before, self.tokens),
            "average_visual_tokens": (float(self.tokens_before), self.average_visual_tokens),
            "prompt_tokens": (sum(self.prompt_tokens_before), sum(self.prompt_tokens)),
            "text_flops": (self.text_flops_before, self.text_flops),
            "flops": (self.flops_before, self.flops),
            "kv_bytes": (self.kv_bytes_before, self.kv_bytes),
        }
        if unpruned is not None:
            if unpruned.prompt_tokens_before != self.prompt_tokens_before or unpruned.tokens < unpruned.tokens_before:
                raise RuntimeStateError(
                    "factors compares with a report of the same prompts that keeps everything; make one by "
                    "foveate.prune(model, method, keep=1.0)."
                )
            pairs["prefill_seconds"] = (unpruned.prefill_seconds, self.prefill_seconds)
            pairs["seconds"] = (unpruned.seconds, self.seconds)
        return {name: before / after if after else math.inf for name, (before, after) in pairs.items()}

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data, without masks.

        Returns:
            ``images`` and ``stages``: lists of what their ``to_dict`` gives; ``experts``: what its ``to_dict`` gives,
            or None; every number of the report by its name,
            such as ``tokens_before``, ``prompt_tokens``, ``text_flops`` or ``prefill_seconds``; and ``factors``, in
            which None stands for infinite.
        """
        told: dict[str, Any] = {"images": [image.to_dict() for image in self.images]}
        told["stages"] = [stage.to_dict() for stage in self.stages]
        told["experts"] = None if self.experts is None else self.experts.to_dict()
        names = [one.name for one in fields(self) if one.name not in told]
        derived = ("tokens_before", "tokens", "average_visual_tokens", "flops_before", "flops", "seconds")
        told |= {name: getattr(self, name) for name in (*names, *derived)}
        factors = {name: value if math.isfinite(value) else None for name, value in self.factors().items()}
        return {**told, "factors": factors}

    def __repr__(self) -> str:
        def row(name: str, before: float, after: float, shown: str) -> tuple[str, ...]:
            return name, format(before, shown), format(after, shown), f"{after / before:.0%}" if before else ""

        rows = [
            ("", "before", "after", "left"),
            row("visual tokens", self.tokens_before, self.tokens, ".0f"),
            row("average over layers", self.tokens_before, self.average_visual_tokens, ".4g"),
            row("prompt tokens", sum(self.prompt_tokens_before), sum(self.prompt_tokens), ".0f"),
            row("text GFLOPs", self.text_flops_before / 1e9, self.text_flops / 1e9, ".3g"),
            *self._expert_rows(row),
            row("vision GFLOPs", self.vision_flops_before / 1e9, self.vision_flops / 1e9, ".3g"),
            *([("small model GFLOPs", "", f"{self.guide_flops / 1e9:.3g}", "")] if self.guide_flops else []),
            row("KV cache MB", self.kv_bytes_before / 1e6, self.kv_bytes / 1e6, ".3g"),
            *([("small model ms", "", f"{self.guide_seconds * 1e3:.3g}", "")] if self.guide_flops else []),
            ("encoder ms", "", f"{self.encoder_seconds * 1e3:.3g}", ""),
            ("selection ms", "", f"{self.selection_seconds * 1e3:.3g}", ""),
            ("prefill ms", "", f"{self.prefill_seconds * 1e3:.3g}", ""),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([name.ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(cells, widths[1:], strict=True))])
            for name, *cells in rows
        ]
        what = "; ".join(map(str, self.stages)) or "nothing is dropped"
        return "\n".join([f"Report of {_several(len(self.images))}: {what}", *(line.rstrip() for line in lines)])

    def _expert_rows(self, row: Callable[..., tuple[str, ...]]) -> list[tuple[str, ...]]:
        if self.experts is None:
            return []
        one = self.experts
        return [
            row("experts of text", one.routed_text, one.routed_text - one.skipped_text, ".0f"),
            row("experts of visual", one.routed_visual, one.routed_visual - one.skipped_visual, ".0f"),
        ]

    def __str__(self) -> str:
        experts = "" if self.experts is None else f"{self.experts.skipped:.0%} of the experts skipped; "
        guide = f"small model {self.guide_seconds * 1e3:.3g} ms, " if self.guide_flops else ""
        return (
            f"{_several(len(self.images))}: "
            f"{self.tokens_before} -> {self.tokens} visual tokens "
            f"({self.average_visual_tokens:.4g} on average over the layers); "
            f"{experts}prefill {self.flops_before / 1e9:.3g} -> {self.flops / 1e9:.3g} GFLOPs "
            f"(vision {self.vision_flops / 1e9:.3g}); "
            f"KV cache {self.kv_bytes_before / 1e6:.3g} -> {self.kv_bytes / 1e6:.3g} MB; "
            f"{guide}encoder {self.encoder_seconds * 1e3:.3g} ms, selection {self.selection_seconds * 1e3:.3g} ms, "
            f"prefill {self.prefill_seconds * 1e3:.3g} ms"
        )


def _several(images: int) -> str:
    return f"{images} image{'' if images == 1 else 's'}"


def build_report(
    state: ForwardState,
    adapter: ModelAdapter,
    cost: CostModel,
    stages: Sequence[StageReport],
    again: Mapping[int, float],
    experts: Callable[[ForwardState, Sequence[int], Sequence[int]], ExpertReport] | None = None,
) -> Report:
    """The report of the forward that `state` recorded, with what its stages were asked to keep.

    Args:
        state: of the forward.
        adapter: of the model.
        cost: of the model.
        stages: that were asked for.
        again: by layer how often its attention is computed once more, for edits of it or to read it.
        experts: tells what was skipped, from the tokens and the visual tokens of each layer, of all prompts together.
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
    skipped = None if experts is None else experts(state, [sum(row) for row in lengths], visual)
    return Report(
        images,
        state.lengths,
        lengths[-1],
        visual,
        cost.text_flops(full),
        cost.text_flops(lengths, again) - (0.0 if skipped is None else skipped.saved_flops),
        cost.vision_flops([span.grid for span in state.spans]),
        cost.vision_flops([span.grid for span in state.spans], state.encoder_kept),
        cost.kv_bytes(full, state.value_bytes),
        cost.kv_bytes(lengths, state.value_bytes),
        sum(watch.seconds for watch in state.encoder_watches),
        sum(watch.seconds for watch in state.selection_watches),
        state.prefill_watch.seconds,
        tuple(stages),
        skipped,
        **guided_costs(state),
    )


def guided_costs(state: ForwardState) -> dict[str, float]:
    """What the pass of a smaller model cost, as fields of a report."""
    one = state.guided
    if one is None:
        return {}
    tokens = one.share * sum(len(span.grid) for span in state.spans)
    return {"guide_tokens": tokens, "guide_flops": one.flops, "guide_seconds": one.watch.seconds}


def _alive(span: Span, place: Tensor | None) -> Tensor:
    """Keep mask (N,) of one image or clip."""
    if place is None:
        return torch.ones(len(span.grid), dtype=torch.bool)
    return (place[span.row, span.index.to(place.device)] >= 0).cpu()


def _lengths(state: ForwardState, layer: int) -> list[int]:
    """Real tokens of each prompt in one layer."""
    stage = state.stage_below(layer + 1)
    kept = state.before if stage is None else state.inside[stage]
    return state.lengths if kept is None else kept.valid.sum(1).tolist()
