"""Listen to the vision encoder: the cues that methods need from it, and how long it took."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError, ModelError
from ..methods import Method
from ..models import ModelAdapter
from ..models.base import FROM_ENCODER, AttentionCall
from ..tokens import Cue, EncoderReading, Grid
from .patches import PatchSeam
from .prompt import Span
from .report import Stopwatch
from .tap import Tap


@dataclass
class _Pass:
    """One forward of the encoder: all images, or all clips."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    calls: dict[nn.Module, list[AttentionCall]] = field(default_factory=lambda: defaultdict(list))
    features: Tensor | None = None
    kept: list[Tensor] | None = None  # of each image what entered the encoder's blocks; None: all
    cues: dict[Cue, list[Tensor]] = field(default_factory=dict)

    def digest(
        self, adapter: ModelAdapter, needs: frozenset[Cue], readings: Sequence[EncoderReading], grids: list[Grid]
    ) -> dict[Cue, list[Tensor]]:
        """Each needed cue as one tensor per image; made once, so that the encoder's activations are let go."""
        if not self.cues:
            if Cue.ENCODER_ATTENTION in needs:
                calls = self.calls[adapter.attention_module()]
                self.cues[Cue.ENCODER_ATTENTION] = adapter.encoder_attention(calls, grids)
            if readings:
                columns = [
                    adapter.encoder_attention(self.calls[adapter.attention_at(one.depth)], grids, one.kind)
                    for one in readings
                ]
                self.cues[Cue.ENCODER_READINGS] = [torch.stack(image, -1) for image in zip(*columns, strict=True)]
            if Cue.ENCODER_FEATURES in needs and self.features is not None:
                self.cues[Cue.ENCODER_FEATURES] = adapter.encoder_features(self.features, grids)
            if Cue.PADDING in needs:
                self.cues[Cue.PADDING] = adapter.padding(self.args, self.kwargs, grids)
            self.calls, self.features = {}, None
        return self.cues


class EncoderListener:
    """Hooks on the encoder, and on its attention and projector when a method needs them.

    Raises:
        MethodError: for methods whose readings do not go together.
    """

    def __init__(self, adapter: ModelAdapter, methods: Sequence[Method], patches: PatchSeam | None = None) -> None:
        self._adapter, self._patches = adapter, patches
        self._needs = needs = frozenset[Cue]().union(*(method.needs for method in methods))
        self._readings = _readings(methods)
        self._passes: list[_Pass] = []
        self._before_that: list[_Pass] = []
        device = next(adapter.vision.parameters()).device
        self._device = device
        self._watch, self._choosing = Stopwatch(device), Stopwatch(device)
        self._removable: list[Any] = [
            adapter.vision.register_forward_pre_hook(torch.compiler.disable(self._before), with_kwargs=True),
            adapter.vision.register_forward_hook(torch.compiler.disable(self._after)),
        ]
        depths = [one.depth for one in self._readings] + [1.0] * (Cue.ENCODER_ATTENTION in needs)
        for module in dict.fromkeys(adapter.attention_at(depth) for depth in depths):  # a module bears one tap
            self._removable.append(Tap(module, functools.partial(self._on_attention, module)))
        if Cue.ENCODER_FEATURES in needs:
            hook = torch.compiler.disable(self._on_projector)
            self._removable.append(adapter.projector.register_forward_pre_hook(hook))

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in self._removable:
            handle.remove()

    def _before(self, module: Any, args: Any, kwargs: Any) -> None:
        self._passes.append(_Pass(args, kwargs))
        if self._patches is not None:
            self._choosing.start()
            self._passes[-1].kept = self._patches.choose(args, kwargs)
            self._choosing.stop()
        self._watch.start()

    def _after(self, module: Any, args: Any, output: Any) -> None:
        self._watch.stop()

    def _on_attention(self, module: nn.Module, call: AttentionCall) -> None:
        self._passes[-1].calls[module].append(replace(call, value=None))  # nobody reads it, and it is large

    def _on_projector(self, module: Any, args: Any) -> None:
        self._passes[-1].features = args[0]

    def take(self) -> tuple[list[_Pass], Stopwatch, Stopwatch]:
        """What was heard since the last call, or what that call returned when nothing was heard since.

        Generating without a cache may encode the images once and then repeat the prompt many times. The watches are of
        encoding and of choosing what to encode.
        """
        heard = self._passes or self._before_that, self._watch, self._choosing
        self._passes, self._before_that = [], heard[0]
        self._watch, self._choosing = Stopwatch(self._device), Stopwatch(self._device)
        return heard

    def grid_inputs(self, modalities: list[str]) -> dict[str, Any]:
        """What the adapter needs to know the grids of images that were encoded before this forward."""
        heard = zip(modalities, self._passes or self._before_that, strict=False)
        found: dict[str, Any] = {}
        for modality, one in heard:
            found |= self._adapter.grid_inputs(modality, one.args, one.kwargs)
        return found

    def forget(self) -> None:
        """A new prompt begins: what was heard for the one before must not serve it."""
        self._before_that = []

    def cues(self, passes: list[_Pass], spans: list[Span]) -> dict[Cue, list[Tensor]]:
        """Each needed cue as one tensor per span, in the order of `spans`.

        Raises:
            ModelError: when images of the prompt were not encoded in this forward.
        """
        wanted = self._needs & FROM_ENCODER
        if not wanted:
            return {}
        modalities = [m for m in self._adapter.modalities if any(s.modality == m for s in spans)]
        if len(passes) < len(modalities):
            raise ModelError(
                "the images were not encoded in this forward, so the encoder cues are missing; "
                "pass pixel values, or use a method without encoder cues such as 'divprune'."
            )
        found: dict[tuple[Cue, str, int], Tensor] = {}
        for modality, heard in zip(modalities, passes, strict=False):
            by_order = {s.order: s.grid for s in spans if s.modality == modality}
            grids = [by_order[order] for order in sorted(by_order)]
            for cue, values in heard.digest(self._adapter, self._needs, self._readings, grids).items():
                found |= {(cue, modality, order): value for order, value in enumerate(values)}
        return {cue: [found[cue, s.modality, s.order] for s in spans] for cue in wanted}

    def kept(self, passes: list[_Pass], spans: list[Span]) -> list[Tensor] | None:
        """Of each span the tokens (n,) that entered the encoder; None where all did."""
        modalities = [m for m in self._adapter.modalities if any(s.modality == m for s in spans)]
        masks = dict(zip(modalities, (heard.kept for heard in passes), strict=False))
        if self._patches is None or len(masks) < len(modalities):
            return None
        return [masks[span.modality][span.order] for span in spans]  # type: ignore[index]


def _readings(methods: Sequence[Method]) -> tuple[EncoderReading, ...]:
    """What the methods want read; all that want something must want the same, as they see one VisualTokens' cues."""
    asking = [method for method in methods if Cue.ENCODER_READINGS in method.needs]
    for method in asking:
        if not method.encoder_readings:
            raise MethodError(f"{method.name} needs ENCODER_READINGS but names none; override `encoder_readings`.")
        if method.encoder_readings != asking[0].encoder_readings:
            raise MethodError(
                f"{asking[0].name} and {method.name} read different layers of the vision encoder and cannot be "
                "combined; use one of them with a method that reads none, such as 'fastv'."
            )
    return asking[0].encoder_readings if asking else ()
