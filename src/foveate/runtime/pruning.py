"""Attach pruning to a live transformers model through hooks, and detach it without a trace."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import Budget
from ..errors import RuntimeStateError
from ..methods import Method
from ..methods.notes import announce
from ..models import ModelAdapter
from ..models.base import AttentionCall
from ..models.moe import moe_block
from ..tokens import Cue
from .account import account
from .before import BeforeLlm
from .bias import bias_seam
from .cache import CacheState, mark, state_of
from .cost import CostModel
from .deepstack import DeepStackSeam
from .editing import edit_layer, edits_of
from .encoder import EncoderListener
from .experts import check_routers, expert_seam, read_router
from .inside import InsideLlm, Stage
from .patches import PatchSeam
from .prompt import Span, locate, modalities_in
from .report import Report, StageReport, Stopwatch
from .step import Step
from .tap import Tap

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Pruning] = weakref.WeakKeyDictionary()


class Pruning:
    """Pruning attached to one model; made by `attach` and `prune`."""

    def __init__(
        self,
        adapter: ModelAdapter,
        patches: PatchSeam | None,
        before: BeforeLlm | None,
        inside: InsideLlm | None,
        dtype_bytes: int,
    ) -> None:
        self._adapter, self._patches, self._before, self._inside = adapter, patches, before, inside
        self._dtype_bytes = dtype_bytes
        self._step = Step()
        self._last: Step | None = None
        self._cost = CostModel(adapter)
        self._prompt: Tensor | None = None
        self._seen = 0
        self._removable: list[Any] = []
        self._deepstack: DeepStackSeam | None = None
        before_drops = before is not None and not before.budget.keeps_all
        self._active = patches is not None or before_drops or inside is not None
        self._stages = [] if patches is None else [Stage(patches.method, patches.budget, -1)]
        if before is not None and before_drops:
            self._stages.append(Stage(before.method, before.budget, 0))
        if inside is not None:
            self._stages += inside.stages
        try:
            self._hook([stage.method for stage in self._stages])
        except BaseException:
            self.detach()
            raise
        _ATTACHED[adapter.model] = self
        announce(stage.method for stage in self._stages)

    @property
    def attached(self) -> bool:
        """Whether the model is being pruned."""
        return bool(self._removable)

    @property
    def text(self) -> nn.Module:
        """The language model that is being pruned."""
        return self._adapter.text

    def detach(self) -> None:
        """Restore the model bit for bit. Detaching twice is harmless."""
        for handle in self._removable:
            handle.remove()
        self._removable = []
        if _ATTACHED.get(self._adapter.model) is self:
            del _ATTACHED[self._adapter.model]

    def report(self) -> Report:
        """The account of the latest prefill with images.

        Raises:
            RuntimeStateError: before any such prefill.
        """
        if self._last is None:
            raise RuntimeStateError("nothing to report yet: run the model on a prompt with an image first.")
        stages = [StageReport(stage.method.name, stage.layer, stage.budget) for stage in self._stages]
        report = account(self._last, self._adapter, self._cost, self._dtype_bytes, stages, self._edits)
        if self._experts is None:
            return report
        spared = self._experts.spared_flops(report.visual_tokens_per_layer)
        return replace(report, text_flops=report.text_flops - spared)

    # -- hooks

    def _hook(self, methods: Sequence[Method]) -> None:
        adapter, add = self._adapter, self._removable.append
        self._experts = expert_seam(adapter, methods, lambda: self._step)
        check_routers(adapter, self._stages)
        bias = bias_seam(methods, adapter.text, lambda: self._step)
        self._edits = edits_of(methods, len(adapter.text.layers))
        self._encoder = EncoderListener(adapter, methods, self._patches)
        add(self._encoder)
        if self._patches is not None:
            self._patches.hook()
            add(self._patches)
        # Under torch.compile, too, hooks run as plain Python: what they do depends on the prompt.
        eager = torch.compiler.disable
        add(adapter.model.register_forward_pre_hook(eager(self._on_model), with_kwargs=True))
        add(adapter.base.register_forward_pre_hook(eager(self._on_base), with_kwargs=True))
        add(adapter.text.register_forward_pre_hook(eager(self._on_text), with_kwargs=True))
        add(adapter.text.register_forward_hook(eager(self._after_text), with_kwargs=True))
        inside, layers = self._inside, adapter.text.layers
        if adapter.deepstack is not None:
            self._deepstack = DeepStackSeam(adapter.deepstack, None if inside is None else inside.stages[0].layer)
            for index in self._deepstack.layers:
                after = functools.partial(self._after_layer, self._deepstack, index)
                add(layers[index].register_forward_hook(eager(after)))
        if bias is not None:
            bias.hook()
            add(bias)
        for layer, edits in self._edits.items():
            add(edit_layer(layers[layer].self_attn, edits, lambda: self._step))
        if inside is None:
            return
        if self._experts is not None:
            self._experts.hook()
            add(self._experts)
        for stage in inside.stages:
            if Cue.ROUTER_LOGITS in stage.method.needs:
                listen = eager(functools.partial(self._on_router, stage))
                add(layers[stage.layer].register_forward_pre_hook(listen, with_kwargs=True))
        for stage in inside.stages:
            if stage.listens:
                add(Tap(layers[stage.layer - 1].self_attn, functools.partial(self._on_attention, inside, stage)))
            for layer in dict.fromkeys(stage.method.llm_readings):
                add(Tap(layers[layer].self_attn, functools.partial(self._on_reading, inside, stage, layer)))
        for index in range(inside.stages[0].layer, len(layers)):
            hook = eager(self._layer_hook(inside, index))
            add(layers[index].register_forward_pre_hook(hook, with_kwargs=True))

    def _on_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("labels") is not None and self._active:
            raise RuntimeStateError(
                "labels cannot be used while pruning: the logits are shorter than the labels; "
                "compute the loss outside, or detach pruning for training."
            )

    def _on_base(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._step = Step(mask=kwargs.get("attention_mask"))
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None:
            self._step.prompt = self._prompt_length(ids, kwargs.get("past_key_values"))
            if ids.shape[1] > 1:  # a decoding step holds no image; not looking saves it a wait for the GPU
                self._step.spans = self._spans(ids, kwargs)
        elif self._active and not _length_of(kwargs.get("past_key_values")):
            raise RuntimeStateError(
                "pruning needs input_ids to know where the images are; pass input_ids, "
                "or shorten the prompt with foveate.prune_inputs and run it without pruning attached."
            )

    def _spans(self, ids: Tensor, kwargs: dict[str, Any]) -> list[Span]:
        known = {k: v for k, v in kwargs.items() if v is not None}
        if not known.keys() & {"pixel_values", "pixel_values_videos"}:
            known = {**self._encoder.grid_inputs(modalities_in(self._adapter, ids)), **known}
        return locate(self._adapter, ids, known)

    def _prompt_length(self, ids: Tensor, cache: Any) -> int:
        """Tokens of `ids` that are prompt: generating without a cache repeats the prompt with one more token."""
        prompt, seen = self._prompt, self._seen
        repeated = (
            cache is None
            and prompt is not None
            and ids.shape[0] == prompt.shape[0]
            and ids.shape[1] == seen + 1
            and torch.equal(ids[:, : prompt.shape[1]], prompt)
        )
        if not repeated:
            self._prompt = prompt = ids
            self._encoder.forget()
        self._seen = ids.shape[1]
        assert prompt is not None
        return prompt.shape[1]

    def _on_text(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        step = self._step
        passes, step.encoder_watch, step.selection_watch = self._encoder.take()
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            return None
        cache = kwargs.get("past_key_values")
        known = state_of(cache)
        state = known or CacheState(self)
        state.owner = self
        past = int(_length_of(cache))
        step.prefill_watch = Stopwatch(embeds.device)
        if self._active or known is not None or step.spans:
            step.begin(state, embeds, _first_known(step.mask, kwargs.get("attention_mask")), past)
            if step.spans and self._active:
                step.selection_watch.start()
                step.encoder_cues = self._encoder.cues(passes, step.spans)
                step.seen = self._encoder.kept(passes, step.spans)
                step.selection_watch.stop()
        kwargs = dict(kwargs)
        if self._before is not None or step.seen is not None or (known is not None and known.before is not None):
            seam = self._before or _PASS_THROUGH
            seam.apply(step, kwargs)
            if state.before is not None and cache is not None:
                mark(cache, state)
        if self._deepstack is not None:
            self._deepstack.enter(step, kwargs)
        if step.spans and self._inside is not None:
            self._inside.enter(step, kwargs["inputs_embeds"])
        step.prefill_watch.start()
        return args, kwargs

    def _after_text(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        step = self._step
        if step.prefill_watch is not None:
            step.prefill_watch.stop()
        step.let_go()
        if self._deepstack is not None:
            self._deepstack.leave()
        if step.spans:
            self._last = step
        cache = getattr(output, "past_key_values", None)
        if cache is not None and step.state is not None and (step.state.before or step.state.inside):
            mark(cache, step.state)  # a cache that the language model made itself

    def _on_attention(self, inside: InsideLlm, stage: Stage, call: AttentionCall) -> None:
        inside.observe(self._step, stage, call)

    def _on_reading(self, inside: InsideLlm, stage: Stage, layer: int, call: AttentionCall) -> None:
        inside.read(self._step, stage, layer, call)

    def _on_router(self, stage: Stage, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if stage.drops(self._step):
            block = moe_block(module)
            assert block is not None
            read_router(self._step, stage.layer, block, args[0] if args else kwargs["hidden_states"])

    def _after_layer(self, seam: DeepStackSeam, index: int, module: nn.Module, args: Any, output: Any) -> Any:
        return seam.after(self._step, index, output)

    def _layer_hook(self, inside: InsideLlm, index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            kwargs = dict(kwargs)
            return inside.apply(self._step, index, module, args, kwargs), kwargs

        return hook


def is_pruned(adapter: ModelAdapter) -> bool:
    """Whether pruning is attached to a model."""
    return adapter.model in _ATTACHED


def _length_of(cache: Any) -> Any:
    return 0 if cache is None else cache.get_seq_length()


def _first_known(outer: Any, inner: Any) -> Any:
    """The caller's 2-D mask where there is one, else whatever the language model was given."""
    return outer if isinstance(outer, Tensor) and outer.ndim == 2 else inner


_PASS_THROUGH: Any = BeforeLlm(None, Budget(1.0), "keep")  # type: ignore[arg-type]
