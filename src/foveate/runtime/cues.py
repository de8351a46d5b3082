"""The cues that methods read of the vision encoder and the language model, read where they arise.

The encoder's are made in `foveate.models.encoder_cues` of what is observed here. Those of the language model are read
by the functions at the end: one a cue, or one for cues that are measured together.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import full_precision
from ..errors import MethodError, ModelError
from ..grouping import ReadCue, Span
from ..importance.attention import attention_row, attention_weights, contributions, transition
from ..importance.rotary import Table, join_sections, rotary_decay, rotary_means
from ..methods import Method, Stage
from ..methods.toolkit.base import attention_from
from ..models import ModelAdapter
from ..models.adapter import AttentionCall
from ..models.encoder_cues import EncoderReader
from ..models.moe import moe_block
from ..tokens import Cue, EncoderReading, Grid, Source
from .cache import TokenIndex
from .compat import with_cache
from .hooks import Hooks, device_of, probe_attention
from .masks import attends
from .seams.base import groups_of
from .state import CallStack, EncoderPass, ForwardState


class EncoderCues:
    """The cues of the vision encoder: its attention and features, observed pass by pass.

    Args:
        adapter: of the model.
        methods: of all stages that choose behind the encoder.
        others: what else is read of the encoder's attention, by who chooses inside it.

    Raises:
        MethodError: for methods whose readings do not go together.
    """

    def __init__(self, adapter: ModelAdapter, methods: Sequence[Method], others: Sequence[EncoderReader] = ()) -> None:
        self._adapter = adapter
        needs = frozenset[Cue]().union(*(method.needs for method in methods))
        self._reader = EncoderReader(adapter, needs, _readings(methods))
        readers = (self._reader, *others)
        self._modules = dict.fromkeys(module for reader in readers for module in reader.modules)
        self._of_values = {module for reader in readers if reader.reads_values for module in reader.modules}

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        """Observe the attention modules and the projector that the cues are read in."""

        def on_attention(module: nn.Module, call: AttentionCall) -> None:
            if stack.encoding is not None and not stack.replaying:
                if module not in self._of_values:
                    call = replace(call, value=None)  # it is large
                stack.encoding.trace.calls[module].append(call)

        def on_projector(module: nn.Module, args: Any, kwargs: Any) -> None:
            encoding = stack.encoding or stack.latest_encoding  # a projector is part of the encoder, or follows it
            if encoding is not None and not stack.replaying:
                encoding.trace.projected.append(args[0] if args else next(iter(kwargs.values())))

        for module in self._modules:
            hooks.observe(module, functools.partial(on_attention, module))
        if self._reader.reads_projector:
            hooks.before(self._adapter.projector, on_projector)

    def grid_inputs(self, modalities: Sequence[str], passes: Sequence[EncoderPass]) -> dict[str, Any]:
        """What the adapter needs to know the grids of images that were encoded before this forward."""
        found: dict[str, Any] = {}
        for modality, one in zip(modalities, passes, strict=False):
            found |= self._adapter.grid_inputs(modality, one.args, one.kwargs)
        return found

    def read(self, passes: Sequence[EncoderPass], spans: Sequence[Span]) -> dict[Cue, list[Tensor]]:
        """Each needed cue as one tensor per span, in the order of `spans`.

        Raises:
            ModelError: when images of the prompt were not encoded in this forward.
        """
        if not self._reader.needs:
            for one in passes:
                one.trace.forget()  # of those who chose inside the encoder
            return {}
        modalities = self._modalities(spans)
        if len(passes) < len(modalities):
            raise ModelError(
                "the images were not encoded in this forward, so the encoder cues are missing; "
                "pass pixel values, or use a method without encoder cues such as 'divprune'."
            )
        found: dict[tuple[Cue, str, int], Tensor] = {}
        for modality, one in zip(modalities, passes, strict=False):
            by_order = {s.order: s.grid for s in spans if s.modality == modality}
            grids = [by_order[order] for order in sorted(by_order)]
            for cue, values in self._read_pass(one, grids).items():
                found |= {(cue, modality, order): value for order, value in zip(sorted(by_order), values, strict=True)}
        return {cue: [found[cue, s.modality, s.order] for s in spans] for cue in self._reader.needs}

    def kept(self, passes: Sequence[EncoderPass], spans: Sequence[Span]) -> dict[int, list[Tensor]]:
        """By block from which on the encoder left tokens out: of each span which (n,) go on from there."""
        modalities = self._modalities(spans)
        if len(passes) < len(modalities):
            return {}
        return {
            block: self._kept_from(block, dict(zip(modalities, passes, strict=False)), spans)
            for block in sorted({block for one in passes for block in one.kept})
        }

    def _kept_from(self, block: int, passes: Mapping[str, EncoderPass], spans: Sequence[Span]) -> list[Tensor]:
        """Of each span which tokens (n,) enter a block of the encoder."""
        masks: dict[tuple[str, int], Tensor] = {}
        for modality, one in passes.items():
            sizes = {span.order: len(span.grid) for span in spans if span.modality == modality}
            orders = sorted(sizes)  # some encoders are handed the frames of a clip one by one, as images
            last = max((start for start in one.kept if start <= block), default=None)
            whole = torch.ones(sum(sizes.values()), dtype=torch.bool) if last is None else torch.cat(one.kept[last])
            parts = whole.split([sizes[order] for order in orders])
            masks |= {(modality, order): part for order, part in zip(orders, parts, strict=True)}
        return [masks[span.modality, span.order] for span in spans]

    def _modalities(self, spans: Sequence[Span]) -> list[str]:
        return [m for m in self._adapter.modalities if any(s.modality == m for s in spans)]

    def _read_pass(self, one: EncoderPass, grids: list[Grid]) -> dict[Cue, list[Tensor]]:
        """Each needed cue as one tensor per image; computed once, so that the encoder's activations can be freed."""
        if not one.cues:
            one.cues = self._reader.read(one.trace, grids)
            one.trace.forget()
        return one.cues


def _readings(methods: Sequence[Method]) -> tuple[EncoderReading, ...]:
    """The encoder readings that methods ask for; those that ask for any must ask for the same, as they share cues."""
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


@dataclass
class _Readings:
    """What was read in one forward so far, until the method that needs it chooses.

    Args:
        embeds: (B, W, d) that entered the language model; W is 0 where no method reads them.
        positions: ids (B or 1, W), or with leading axes (C, B, W), that entered it; None: the model counts itself.
        below: by stage, the cues of the layer below it.
        rows: by LLM layer that a method chose, its attention row of each span.
        contributions: by layer in which they were read, and by span.
        states: by stage, what entered the layer below it, of each span.
        transitions: by LLM layer that a method chose, of its attention and then of its feed-forward the (n, 2) numbers
            of each span.
    """

    embeds: Tensor
    positions: Tensor | None = None
    below: dict[int, dict[Cue, ReadCue]] = field(default_factory=dict)
    rows: dict[int, list[Tensor]] = field(default_factory=dict)
    contributions: list[list[Tensor]] = field(default_factory=list)
    states: dict[int, list[Tensor]] = field(default_factory=dict)
    transitions: dict[int, list[list[Tensor]]] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerBelow:
    """The attention below the layer whose input is shortened, as functions see it that read cues from there.

    Args:
        state: of the forward.
        layer: the layer whose input is shortened.
        call: of the attention function in the layer below.
        valid: (B, past + W) bool, which of the keys are real and of the prompt.
        past: how many of them were cached before this forward.
        contributions: of lower layers, to be added to.
    """

    state: ForwardState
    layer: int
    call: AttentionCall
    valid: Tensor
    past: int
    contributions: list[list[Tensor]]

    def by_span(self, values: Tensor) -> list[Tensor]:
        """The part of each span of `values` (B, W, ...)."""
        return self.state.by_span(values, self.layer)


@dataclass(frozen=True)
class Entering:
    """What enters the layer whose input is shortened, as functions see it that read cues there.

    Args:
        state: of the forward.
        stage: what shortens it.
        module: the layer.
        hidden: (B, W, d), its input.
        kwargs: its other arguments, of what entered the language model.
        tokens: which tokens these are.
        embeds: (B, W', d) that entered the language model.
        rows: by LLM layer that the method chose, its attention row of each span.
        states_below: what entered the layer below, of each span; None where no method reads it.
        transitions: by LLM layer that the method chose, of attention and of feed-forward the (n, 2) numbers of each
            span.
        adapter: of the model.
        positions: ids (B or 1, W'), or with leading axes (C, B, W'), that entered it; None: the model counts itself.
    """

    state: ForwardState
    stage: Stage
    module: nn.Module
    hidden: Tensor
    kwargs: Mapping[str, Any]
    tokens: TokenIndex
    embeds: Tensor
    rows: Mapping[int, list[Tensor]]
    states_below: list[Tensor] | None
    transitions: Mapping[int, list[list[Tensor]]]
    adapter: ModelAdapter
    positions: Tensor | None = None

    def by_span(self, values: Tensor) -> list[Tensor]:
        """The part of each span of `values` (B, W, ...)."""
        return self.state.by_span(values, self.stage.layer)


class LanguageModelCues:
    """The cues of methods inside the LLM: observed in lower layers, or read off the layer whose input is shortened.

    Args:
        stages: inside the LLM.
        adapter: of the model.
    """

    def __init__(self, stages: Iterable[Stage], adapter: ModelAdapter) -> None:
        self._adapter, self._attention = adapter, adapter.attention_layers
        before = Cue.of(Source.ENCODER, Source.GUIDE)
        self._stages = {stage.layer: stage for stage in stages if stage.method.needs - before}
        self._keeps_embeds = any(stage.method.needs & Cue.of(Source.PROMPT) for stage in self._stages.values())
        self._above = {
            layer - 1: stage for layer, stage in self._stages.items() if Cue.STATES_BELOW in stage.method.needs
        }
        self._changing = [stage for stage in self._stages.values() if Cue.LLM_TRANSITIONS in stage.method.needs]

    @property
    def layers(self) -> frozenset[int]:
        """The layers whose input is to be shown to `entered`."""
        return frozenset(self._above)

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        """Observe the attention of the layers that cues are read in."""
        for stage in self._stages.values():
            if stage.method.needs & Cue.of(Source.LAYER_BELOW):
                below = self._adapter.text.layers[stage.layer - 1].self_attn
                hooks.observe(below, functools.partial(self._observe, stack, stage))
            rows = stage.method.llm_readings if Cue.LLM_READINGS in stage.method.needs else ()
            for layer in dict.fromkeys(rows):
                read = self._adapter.text.layers[attention_from(self._attention, layer)].self_attn
                hooks.observe(read, functools.partial(self._observe_row, stack, stage, layer))
        for layer in dict.fromkeys(layer for stage in self._changing for layer in stage.method.llm_readings):
            for module in self._adapter.modules_of(layer) or ():  # without them the cue is refused
                hooks.after(module, functools.partial(self._observe_module, stack, layer))

    def entered(self, state: ForwardState, index: int, hidden: Tensor) -> None:
        """A layer begins with `hidden` (B, W, d), shortened where it was to be."""
        stage = self._above.get(index)
        if stage is not None and self in state.slots and groups_of(stage, state).drops:
            state.slots[self].states[stage.layer] = state.by_span(hidden.detach(), stage.layer)

    def begin(self, state: ForwardState, embeds: Tensor, positions: Tensor | None) -> None:
        """The language model begins with `embeds` (B, W, d), at `positions` if it is told any."""
        if self._stages and state.spans:
            if not self._keeps_embeds:  # they are large
                embeds = embeds.new_empty(len(embeds), 0, embeds.shape[-1])
            state.slots[self] = _Readings(embeds.detach(), positions)

    def end(self, state: ForwardState) -> None:
        """The language model has finished: release what was read."""
        state.slots.pop(self, None)

    def read(
        self, state: ForwardState, stage: Stage, module: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any]
    ) -> dict[Cue, ReadCue]:
        """The cues that a stage's method needs, when its layer begins."""
        if stage.layer not in self._stages:
            return {}
        readings: _Readings = state.slots[self]
        tokens = state.entering(stage.layer)
        entering = Entering(
            state,
            stage,
            module,
            hidden,
            kwargs,
            tokens,
            readings.embeds,
            readings.rows,
            readings.states.pop(stage.layer, None),
            readings.transitions,
            self._adapter,
            readings.positions,
        )
        return readings.below.pop(stage.layer, {}) | _read(AT_LAYER, entering, stage.method.needs)

    @full_precision
    def _observe(self, stack: CallStack, stage: Stage, call: AttentionCall) -> None:
        """Take what the stage's method needs from the attention of the layer below."""
        state = stack.forward
        if state is not None and not stack.replaying and groups_of(stage, state).drops:
            readings: _Readings = state.slots[self]
            with torch.no_grad():
                below = _layer_below(state, stage.layer, call, readings.contributions)
                readings.below[stage.layer] = _read(BELOW_LAYER, below, stage.method.needs)

    @full_precision
    def _observe_row(self, stack: CallStack, stage: Stage, layer: int, call: AttentionCall) -> None:
        """Take the attention row of a lower layer that the stage's method chose."""
        state = stack.forward
        if state is not None and not stack.replaying and groups_of(stage, state).drops:
            readings: _Readings = state.slots[self]
            with torch.no_grad():
                readings.rows[layer] = _attention_row(_layer_below(state, layer + 1, call, readings.contributions))

    @full_precision
    def _observe_module(
        self, stack: CallStack, layer: int, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        """Take how far one of the modules of a layer that a method chose changes each token."""
        state = stack.forward
        if state is None or stack.replaying or not any(groups_of(stage, state).drops for stage in self._changing):
            return
        given: Tensor = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
        made: Tensor = output[0] if isinstance(output, tuple) else output
        with torch.no_grad():
            change = transition(given, made.view(given.shape))  # experts may give the tokens of all prompts in one row
            readings: _Readings = state.slots[self]
            readings.transitions.setdefault(layer, []).append(state.by_span(change, layer + 1))


def _layer_below(state: ForwardState, layer: int, call: AttentionCall, parts: list[list[Tensor]]) -> LayerBelow:
    valid, past = state.keys(layer - 1)
    return LayerBelow(state, layer, call, state.without_generated(valid).to(call.key.device), past, parts)


Reader = Callable[[Any], Any]


def _read(readers: Mapping[tuple[Cue, ...], Reader], shown: Any, needs: frozenset[Cue]) -> dict[Cue, ReadCue]:
    """The cues among `needs` that `readers` give."""
    out: dict[Cue, ReadCue] = {}
    for cues, reader in readers.items():
        if needs.intersection(cues):
            read = reader(shown)
            out |= {cues[0]: read} if len(cues) == 1 else dict(zip(cues, read, strict=True))
    return out


@full_precision
def last_row(call: AttentionCall, valid: Tensor, past: int) -> Tensor:
    """Head-mean attention (B, W) of each prompt's last real token to the W tokens of this forward.

    Args:
        call: query and key of one attention module; the key may have unused room at its end, or lack old entries.
        valid: (B, past + W) bool, real entries.
        past: entries that were there before this forward.
    """
    query, visible, first = _last_query(call, valid.to(call.key.device), past)
    return attention_row(query, call.key, call.scaling, visible)[:, first : first + call.query.shape[2]]


def identity_rotary(rotary: Table | Tensor, hidden: Tensor) -> Table | Tensor:
    """Rotary tables that rotate nothing, shaped like those of a model, for the tokens of `hidden` (B, W, d).

    A model may have a table for each axis, and one row for the whole batch; or one table of complex numbers.
    """
    if isinstance(rotary, Tensor):
        return torch.ones_like(rotary[..., :1, :].expand(*rotary.shape[:-2], hidden.shape[1], -1))
    cos, sin = (table[..., :1, :].expand(*table.shape[:-2], hidden.shape[1], -1) for table in rotary)
    return torch.ones_like(cos), torch.zeros_like(sin)


def joint_table(rotary: Table | Tensor, text_config: Any) -> Table:
    """The language model's rotary tables as one for all axes, (B or 1, W, hd) each, whichever release made them.

    Of a table of complex numbers (B or 1, W, hd / 2) each frequency is there once instead of twice.
    """
    if isinstance(rotary, Tensor):  # complex numbers, one for each frequency, as Llama 4's
        return rotary.real, rotary.imag
    return join_sections(rotary, text_config.rope_parameters.get("mrope_section", ()))


def visible_keys(call: AttentionCall, valid: Tensor, past: int, queries: Tensor) -> tuple[Tensor, int]:
    """Which keys (B, M, S) queries of this forward may see, by their places (B, M); and the first key of this forward.

    The cache of a layer with a window may have discarded old entries, so that its S keys are the last of `valid`.
    """
    length, physical = call.key.shape[2], valid.shape[1]
    first = max(physical - length, 0)
    columns = torch.arange(first, first + length, device=valid.device)
    real = torch.nn.functional.pad(valid, (0, max(first + length - physical, 0)))[:, columns]
    visible = real[:, None] & (columns <= (past + queries)[..., None])
    if call.mask is not None and call.mask.ndim == 4:
        rows = attends(call.mask)[:, 0].to(valid.device).expand(len(valid), -1, -1)
        rows = rows.gather(1, queries[..., None].expand(-1, -1, rows.shape[2]))[..., :length]
        seen = visible & rows
        visible = torch.where(seen.any(-1, keepdim=True), seen, visible)  # rows of padding see nothing
    elif call.window is not None:
        visible &= columns > (past + queries)[..., None] - call.window
    return visible, past - first


def _last_query(call: AttentionCall, valid: Tensor, past: int) -> tuple[Tensor, Tensor, int]:
    """The query (B, H, hd) of each prompt's last real token, which keys it sees (B, S), and this forward's first."""
    steps = torch.arange(valid.shape[1], device=valid.device)
    last = torch.where(valid, steps, -1).amax(1) - past  # (B,) index among the queries
    visible, first = visible_keys(call, valid, past, last.clamp_min(0)[:, None])
    return call.query[torch.arange(len(last), device=last.device), :, last], visible[:, 0], first


def _text_rows(state: ForwardState, layer: int, call: AttentionCall, valid: Tensor, past: int) -> Tensor:
    """(B, W, H, M): attention of each text token of the prompts to the W tokens of this forward, by head."""
    text, width = state.text, call.query.shape[2]
    out = []
    for row in range(len(valid)):  # one by one, because the attention to all keys is large
        at = state.locate(text.index[row], row, layer).clamp_min(0).to(valid.device)
        alone = call.of_row(row)
        visible, first = visible_keys(alone, valid[row : row + 1], past, at[None])
        visible = visible & text.valid[row, None, :, None].to(valid.device)
        weights = attention_weights(alone.query[:, :, at], alone.key, call.scaling, visible)
        out.append(weights[0, ..., first : first + width].permute(2, 0, 1))
    return torch.stack(out)


# -- the functions that read the cues of the language model

BELOW_LAYER: dict[tuple[Cue, ...], Reader] = {}  # of a `LayerBelow`
AT_LAYER: dict[tuple[Cue, ...], Reader] = {}  # of what is `Entering`; the model's own modules follow its autocast


def reads(readers: dict[tuple[Cue, ...], Reader], *cues: Cue) -> Callable[[Reader], Reader]:
    """Decorator: the function reads these cues; several as a tuple, because they are measured together."""

    def register(function: Reader) -> Reader:
        readers[cues] = function
        return function

    return register


@reads(BELOW_LAYER, Cue.LLM_ATTENTION)
def _attention_row(below: LayerBelow) -> list[Tensor]:
    return below.by_span(last_row(below.call, below.valid, below.past))


@reads(BELOW_LAYER, Cue.LLM_CONTRIBUTIONS)
def _contributions(below: LayerBelow) -> list[Tensor]:
    call = below.call
    query, visible, first = _last_query(call, below.valid, below.past)
    parts = contributions(query, call.key, call.values, call.scaling, visible)
    below.contributions.append(below.by_span(parts[:, first : first + call.query.shape[2]]))
    return [torch.stack(of_span, 1) for of_span in zip(*below.contributions, strict=True)]


@reads(BELOW_LAYER, Cue.LLM_KEYS, Cue.TEXT_KEYS)
def _keys(below: LayerBelow) -> tuple[list[Tensor], Tensor]:
    lengths = _keys_of_forward(below).float().abs().sum((1, 3))
    return below.by_span(lengths), below.state.by_text(lengths, below.layer)


def _keys_of_forward(below: LayerBelow) -> Tensor:
    """(B, K, W, c): the keys of the tokens of this forward."""
    return _of_forward(below, below.call.key)


def _of_forward(below: LayerBelow, cached: Tensor) -> Tensor:
    """(B, K, W, c): of keys or values (B, K, S, c) those of the tokens of this forward."""
    width = below.call.query.shape[2]
    first = below.past - max(below.valid.shape[1] - cached.shape[2], 0)
    return cached[:, :, first : first + width]


@reads(BELOW_LAYER, Cue.LLM_VALUES, Cue.TEXT_VALUES)
def _values(below: LayerBelow) -> tuple[list[Tensor], Tensor]:
    values = _of_forward(below, below.call.values).transpose(1, 2)
    return below.by_span(values), below.state.by_text(values, below.layer)


@reads(BELOW_LAYER, Cue.LLM_TEXT_ATTENTION)
def _attention_of_text(below: LayerBelow) -> list[Tensor]:
    return below.by_span(_text_rows(below.state, below.layer, below.call, below.valid, below.past))


@reads(AT_LAYER, Cue.LLM_READINGS)
def _attention_rows(entering: Entering) -> list[Tensor]:
    columns = [entering.rows[layer] for layer in entering.stage.method.llm_readings]
    return [torch.stack(of_span, -1) for of_span in zip(*columns, strict=True)]


@reads(BELOW_LAYER, Cue.LLM_KEY_VECTORS)
def _key_vectors(below: LayerBelow) -> list[Tensor]:
    return below.by_span(_keys_of_forward(below).transpose(1, 2))


@reads(AT_LAYER, Cue.STATES_BELOW)
def _states_below(entering: Entering) -> list[Tensor]:
    assert entering.states_below is not None
    return entering.states_below


@reads(AT_LAYER, Cue.LLM_TRANSITIONS)
def _transitions(entering: Entering) -> list[Tensor]:
    chosen = [entering.transitions[layer] for layer in entering.stage.method.llm_readings]
    by_layer = [[torch.stack(of_span, 1) for of_span in zip(*modules, strict=True)] for modules in chosen]
    return [torch.stack(of_span, 1) for of_span in zip(*by_layer, strict=True)]


@reads(AT_LAYER, Cue.TEXT_EMBEDDINGS)
def _text_embeddings(entering: Entering) -> Tensor:
    return entering.state.by_text(entering.embeds, 0)


@reads(AT_LAYER, Cue.INPUT_EMBEDDINGS)
def _input_embeddings(entering: Entering) -> list[Tensor]:
    return entering.state.by_span(entering.embeds, 0)


@reads(AT_LAYER, Cue.TEXT_STATES)
def _text_states(entering: Entering) -> Tensor:
    return entering.state.by_text(entering.hidden, entering.stage.layer)


@reads(AT_LAYER, Cue.ROTARY_DECAY)
@full_precision
def _rotary_decay(entering: Entering) -> list[Tensor]:
    state = entering.state
    cos, sin = joint_table(entering.kwargs["position_embeddings"], entering.adapter.text.config)
    batch = len(state.given)
    of_text = [state.by_text(table.expand(batch, -1, -1), 0) for table in (cos, sin)]
    return state.by_span(rotary_decay((cos, sin), (of_text[0], of_text[1])), 0)


@reads(AT_LAYER, Cue.ROTARY_MEANS)
def _rotary_means(entering: Entering) -> list[Tensor]:
    state, text, ids = entering.state, entering.adapter.text, entering.positions
    if ids is None:  # those that the model would use
        ids = torch.arange(state.past, state.past + state.length, device=entering.hidden.device)[None]
    if ids.ndim == 3 and len(ids) == 4:  # the first axis is the text's, which rotates nothing
        ids = ids[1:]
    # In float32, as the means of neighbouring positions differ by little.
    rotary, like = text.rotary_emb, entering.hidden.new_empty(1, 1, 1, dtype=torch.float32)
    given = {}
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        given["layer_type"] = text.config.layer_types[entering.stage.layer]

    # Some language models have three axes and yet take ids of one, as those of Qwen3.5 do.
    axes = 3 if ids.ndim == 3 or hasattr(rotary, "mrope_section") else 0

    def rotate(axis: Tensor) -> Table | Tensor:
        tables: Table | Tensor = rotary(like, axis.expand(axes, -1, -1) if axes else axis, **given)
        return tables

    return state.by_span(rotary_means(rotate, ids).expand(len(state.given), -1, -1), 0)


@reads(AT_LAYER, Cue.LAST_NORM)
def _last_norm(entering: Entering) -> Tensor:
    # Of ones, whose root mean square is 1, an RMS norm makes its weights; families keep them in different ways.
    norm = entering.adapter.last_norm
    ones = torch.ones_like(entering.hidden[0, :1], device=device_of(norm, entering.hidden.device))
    weights: Tensor = norm(ones)[0]
    return weights.float()


@reads(AT_LAYER, Cue.ROUTER_LOGITS)
def _router_logits(entering: Entering) -> list[Tensor]:
    block = moe_block(entering.module)
    if block is None:
        raise ModelError(
            f"layer {entering.stage.layer} of this model has no experts, so there is no router to read; prune at "
            "another layer."
        )
    # Past hooks, so that observers see each layer once.
    hidden = entering.hidden.to(device_of(block.router, entering.hidden.device))
    logits = block.router.forward(block.norm(hidden))[0]
    return entering.by_span(logits.view(*entering.hidden.shape[:2], -1))


@reads(AT_LAYER, Cue.LLM_ATTENTION_HERE)
def _attention_row_here(entering: Entering) -> list[Tensor]:
    return entering.by_span(last_row(*_attention_here(entering)))


@reads(AT_LAYER, Cue.LLM_TEXT_ATTENTION_HERE)
def _attention_of_text_here(entering: Entering) -> list[Tensor]:
    return entering.by_span(_text_rows(entering.state, entering.stage.layer, *_attention_here(entering)))


def _attention_here(entering: Entering) -> tuple[AttentionCall, Tensor, int]:
    """The attention of a layer that has not run yet, as if it ran on all tokens that enter it.

    Beside it are which keys are real and of the prompt, (B, past + W) bool, and how many of them were cached before.
    """
    state, layer, kwargs = entering.state, entering.stage.layer, dict(entering.kwargs)
    below, known = state.stage_below(layer), state.cache.inside.get(layer)
    if below is not None:
        state.cut_positions(below, kwargs)
    cached = (state.cached_layout(layer) if known is None else known).valid
    call = probe_attention(entering.module, entering.hidden, kwargs)
    valid = state.without_generated(torch.cat([cached, entering.tokens.valid], 1))
    return call, valid, cached.shape[1]


@reads(AT_LAYER, Cue.LLM_ATTENTION_UNROTATED)
def _attention_row_unrotated(entering: Entering) -> list[Tensor]:
    valid = entering.state.without_generated(entering.tokens.valid)
    return entering.by_span(last_row(_unrotated_attention(entering), valid, 0))


@reads(AT_LAYER, Cue.TEXT_QUERIES_UNROTATED, Cue.KEYS_UNROTATED)
def _queries_and_keys_unrotated(entering: Entering) -> tuple[Tensor, list[Tensor]]:
    call = _unrotated_attention(entering)
    queries = entering.state.by_text(call.query.transpose(1, 2), entering.stage.layer)
    return queries, entering.by_span(call.key.transpose(1, 2))


def _unrotated_attention(entering: Entering) -> AttentionCall:
    """The attention of a layer that has not run yet, without positions; what is cached is rotated, and left out."""
    kwargs = with_cache(entering.kwargs, None)
    kwargs["position_embeddings"] = identity_rotary(kwargs["position_embeddings"], entering.hidden)
    return probe_attention(entering.module, entering.hidden, kwargs)


BEFORE_LLM = frozenset({Cue.TEXT_EMBEDDINGS, Cue.ROTARY_MEANS})  # cues that need no layer


def read_before_llm(
    state: ForwardState, stage: Stage, adapter: ModelAdapter, kwargs: Mapping[str, Any]
) -> dict[Cue, ReadCue]:
    """The cues that a method before the language model needs beside those of the encoder.

    Args:
        state: of the forward.
        stage: before the language model.
        adapter: of the model.
        kwargs: arguments of the language model, unpruned.
    """
    embeds, tokens = kwargs["inputs_embeds"], TokenIndex.everything(state.given)
    positions = kwargs.get("position_ids")
    entering = Entering(state, stage, adapter.text, embeds, kwargs, tokens, embeds, {}, None, {}, adapter, positions)
    return _read(AT_LAYER, entering, stage.method.needs & BEFORE_LLM)
