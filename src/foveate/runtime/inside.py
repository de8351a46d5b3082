"""The seam inside the language model: the hidden states that enter one or more decoder layers are shortened."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import Budget
from ..methods import Method
from ..models.base import AttentionCall
from ..tokens import Cue
from .ahead import call_ahead
from .cache import mark
from .kept import Kept, Layout
from .reading import (
    OF_THE_LAYER_BELOW,
    OF_THE_LAYER_ITSELF,
    OF_THE_PROMPT,
    decay,
    heard,
    joint_table,
    last_row,
    unrotated,
)
from .selecting import Pools, choose
from .step import Step


@dataclass(frozen=True)
class Stage:
    """One method at the zero-based layer whose input it shortens; its budget is of the unpruned images."""

    method: Method
    budget: Budget
    layer: int

    @property
    def listens(self) -> bool:
        """Whether the method needs to know how the layer below attends."""
        return bool(self.method.needs & OF_THE_LAYER_BELOW)

    def drops(self, step: Step) -> bool:
        """Whether this forward loses tokens here."""
        return Pools.of(step.spans, self.budget).drops


class InsideLlm:
    """Shortens the hidden states that enter one or more decoder layers, and what later layers are given beside them.

    Args:
        stages: by rising layer.
        text_config: tells the attention kernel, for masks that must be made from nothing.
        norm: the language model's last norm, an RMS norm.
    """

    def __init__(self, stages: tuple[Stage, ...], text_config: Any, norm: Callable[[Tensor], Tensor]) -> None:
        self.stages, self._config, self._norm = stages, text_config, norm
        self._at = {stage.layer: stage for stage in stages}

    def enter(self, step: Step, embeds: Tensor) -> None:
        """Keep what the stages read of the embeddings (B, W, d) that enter the language model."""
        if any(stage.method.needs & OF_THE_PROMPT for stage in self.stages):
            step.embeds, step.words = embeds, step.read(embeds)

    def observe(self, step: Step, stage: Stage, call: AttentionCall) -> None:
        """Take what the stage's method needs from the attention of the layer below."""
        if step.valid is not None and stage.drops(step):
            step.heard[stage.layer] = heard(step, stage.layer, call, stage.method.needs)

    def read(self, step: Step, stage: Stage, layer: int, call: AttentionCall) -> None:
        """Take the attention row of a lower layer that the stage's method chose."""
        if step.valid is not None and stage.drops(step):
            wanted = frozenset({Cue.LLM_ATTENTION})
            step.readings[layer] = heard(step, layer + 1, call, wanted)[Cue.LLM_ATTENTION]

    def apply(
        self, step: Step, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Edit the arguments of a decoder layer, `module`; `index` is its number."""
        if index in self._at:
            args = self._shorten(step, self._at[index], module, args, kwargs)
        layer = step.stage_below(index + 1)
        if layer is None:
            return args
        assert step.state is not None
        layout, kept = step.state.inside[layer], step.inside[layer]
        cache: Any = kwargs.get("past_key_values")
        room = cache.get_max_length(index) if getattr(cache, "is_compileable", False) else None
        mask = kwargs.get("attention_mask")
        kernel = self._config._attn_implementation
        kwargs["attention_mask"] = step.once(layer, "mask", mask, lambda: layout.mask(mask, kept, kernel, room))
        self._place(step, layer, kwargs)
        return args

    @staticmethod
    def _place(step: Step, layer: int, kwargs: dict[str, Any]) -> None:
        """Cut a decoder layer's positions down to those that the stage at `layer` left."""
        kept = step.inside[layer]
        rotary = kwargs.get("position_embeddings")
        if rotary is not None:
            made = step.once(layer, "rope", rotary, lambda: tuple(map(kept.rotary, rotary)))
            kwargs["position_embeddings"] = made
        ids = kwargs.get("position_ids")
        if ids is not None:
            kwargs["position_ids"] = step.once(layer, "ids", ids, lambda: kept.positions(ids))

    def _shorten(
        self, step: Step, stage: Stage, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        state, drops = step.state, stage.drops(step)
        assert state is not None
        if not drops and stage.layer not in state.inside:
            return args
        assert step.valid is not None
        entering = self._entering(step, stage.layer, hidden)
        if drops:
            look = functools.partial(self._row_ahead, step, stage.layer, module, hidden, entering, kwargs)
            survivors, hidden = self._select(step, stage, hidden, entering, look, kwargs.get("position_embeddings"))
            if stage.layer not in state.inside and torch.equal(survivors.valid.sum(1), entering.valid.sum(1)):
                return self._with(hidden, args, kwargs)  # by content, nothing had to go
            hidden = survivors.gather(hidden)
            kept = entering.then(survivors)
        else:
            kept = entering
        if stage.layer not in state.inside:
            state.inside[stage.layer] = self._past(step, stage.layer, hidden)
        state.inside[stage.layer].append(kept)
        step.inside[stage.layer] = kept
        cache: Any = kwargs.get("past_key_values")
        if cache is not None:
            mark(cache, state)
        return self._with(hidden, args, kwargs)

    @staticmethod
    def _with(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        if args:
            return (hidden, *args[1:])
        kwargs["hidden_states"] = hidden
        return args

    def _select(
        self, step: Step, stage: Stage, hidden: Tensor, entering: Kept, look: Callable[[Cue], Tensor], rotary: Any
    ) -> tuple[Kept, Tensor]:
        """Ask the method: the survivors among the entering tokens, and the hidden states with its merges applied."""
        assert step.selection_watch is not None and step.prefill_watch is not None
        step.prefill_watch.stop()
        step.selection_watch.start()
        pools, needs = Pools.of(step.spans, stage.budget), stage.method.needs
        cues = {**step.encoder_cues, **step.heard.pop(stage.layer, {})}
        if Cue.LLM_READINGS in needs:
            columns = [step.readings[layer] for layer in stage.method.llm_readings]
            cues[Cue.LLM_READINGS] = [torch.stack(rows, -1) for rows in zip(*columns, strict=True)]
        for cue in needs & OF_THE_LAYER_ITSELF:
            cues[cue] = step.of_spans(look(cue), stage.layer)
        if Cue.INPUT_EMBEDDINGS in needs:
            assert step.embeds is not None
            cues[Cue.INPUT_EMBEDDINGS] = step.of_spans(step.embeds, 0)
        if Cue.ROTARY_DECAY in needs:
            cues[Cue.ROTARY_DECAY] = decay(step, joint_table(rotary, self._config))
        words = step.words if needs & OF_THE_PROMPT else None
        if words is not None and needs & {Cue.LLM_KEYS, Cue.TEXT_STATES, Cue.LAST_NORM}:
            states = step.of_words(hidden, stage.layer) if Cue.TEXT_STATES in needs else None
            norm = self._last_norm(hidden) if Cue.LAST_NORM in needs else None
            words = replace(words, keys=step.text_keys.get(stage.layer), states=states, norm=norm)
        keep, hidden, _ = choose(stage.method, pools, hidden, step.places(stage.layer), cues, words)
        survivors = Kept.of(keep & entering.valid)
        step.selection_watch.stop()
        step.prefill_watch.start()
        return survivors, hidden

    def _last_norm(self, hidden: Tensor) -> Tensor:
        """(d,) float32: the weights of the language model's last norm, which it gives for ones of root mean square 1.

        Families keep them in different ways, some less 1.
        """
        with torch.no_grad():
            return self._norm(torch.ones_like(hidden[0, :1]))[0].float()

    def _row_ahead(
        self,
        step: Step,
        layer: int,
        module: nn.Module,
        hidden: Tensor,
        entering: Kept,
        kwargs: dict[str, Any],
        cue: Cue,
    ) -> Tensor:
        """The attention row of the last prompt token in a layer that has not run yet, if it ran on all that enters."""
        assert step.state is not None
        kwargs = dict(kwargs)
        if cue is Cue.LLM_ATTENTION_UNROTATED:
            # What is cached is rotated, and so has no place in this row.
            kwargs["position_embeddings"] = unrotated(kwargs["position_embeddings"], hidden)
            return last_row(call_ahead(module, hidden, kwargs, cached=False), step.of_prompt(entering.valid), 0)
        below = step.stage_below(layer)
        if below is not None:
            self._place(step, below, kwargs)
        known = step.state.inside.get(layer)
        cached = (self._past(step, layer, hidden) if known is None else known).valid
        call = call_ahead(module, hidden, kwargs, cached.shape[1] > 0)
        return last_row(call, step.of_prompt(torch.cat([cached, entering.valid], 1)), cached.shape[1])

    @staticmethod
    def _entering(step: Step, layer: int, hidden: Tensor) -> Kept:
        """Which of the forward's tokens enter a layer."""
        below = step.stage_below(layer)
        if below is not None:
            return step.inside[below]
        assert step.valid is not None
        return Kept.everything(hidden.shape[0], hidden.shape[1], hidden.device, step.valid[:, step.past :])

    @staticmethod
    def _past(step: Step, layer: int, hidden: Tensor) -> Layout:
        """What the cache of a layer held before this forward, when nothing was ever dropped at the layer itself."""
        below = step.stage_below(layer)
        assert step.state is not None and step.valid is not None
        if below is not None:
            return step.state.inside[below].without_last(step.inside[below])
        layout = Layout.empty(hidden.shape[0], hidden.device)
        if step.past:
            past = step.valid[:, : step.past]
            layout.append(Kept.everything(hidden.shape[0], step.past, hidden.device, past))
        return layout
