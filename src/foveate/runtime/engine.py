"""Pruning attached to a live model: the engine drives the seams through hooks, and detaches without a trace."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RuntimeStateError
from ..grouping import Span
from ..methods import Stage, Where
from ..methods.toolkit.interventions import LogitBias
from ..methods.toolkit.notes import announce
from ..models import ModelAdapter
from ..tokens import Cue, Source
from .cache import CacheState, mark, state_of
from .compat import cache_of, cache_of_output, warn_if_untested
from .cost import CostModel
from .cues import EncoderCues
from .guide import guide_of
from .hooks import Attached, Checkpointing, Hooks, device_of, forget_compiled
from .labels import ShortenedLoss, check_labels
from .logits import check_logits_to_keep, keep_logits, place_logits_to_keep
from .masks import check_last_row, check_length, custom_mask, is_packed, read_bidirectional, unmasked_of
from .prompt import locate, modalities_in
from .report import Report, StageReport, build_report
from .seams.attention import AttentionBias, AttentionEdits, bias_of, edits_of
from .seams.base import Seam, groups_of
from .seams.before_encoder import BeforeEncoder
from .seams.before_llm import BeforeLlm, Positions
from .seams.deepstack import DeepStackRows
from .seams.encoder_blocks import blocks_of
from .seams.experts import check_routers, experts_of
from .seams.inside_encoder import InsideEncoder
from .seams.inside_llm import InsideLlm
from .state import Call, CallStack, EncoderPass, ForwardState, Generation, hidden_of

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Pruning] = weakref.WeakKeyDictionary()


class Pruning:
    """Pruning attached to one model; made by `foveate.prune`, and a context manager that detaches on exit.

    Examples:
        >>> pruning = foveate.prune(model, "divprune", keep=0.25)
        >>> pruning
        Pruning(attached to LlavaForConditionalGeneration: divprune keeps 0.25 before the LLM, per image)
        >>> pruning.detach()
        >>> pruning.attached
        False

    Args:
        adapter: of the model.
        stages: that drop something, by rising layer.
        positions: ``"original"`` or ``"compact"``.
    """

    def __init__(self, adapter: ModelAdapter, stages: Sequence[Stage], positions: Positions) -> None:
        warn_if_untested()
        self._adapter, self._stages = adapter, tuple(stages)
        self._stack, self._hooks = CallStack(), Hooks()
        self._busy: dict[int, threading.Thread] = {}  # calls that are under way, and generations
        self._finished: ForwardState | None = None  # the latest prefill of any thread
        self._cost = CostModel(adapter)
        methods = [stage.method for stage in stages]
        check_routers(adapter, stages)
        self._edits = edits_of(methods, adapter)
        self._experts, self._guide = experts_of(methods, adapter), guide_of(methods, adapter)
        bias = bias_of(methods, adapter.text)
        self._seams = self._build_seams(bias, positions)
        behind = [one.method for one in self._stages if one.where in (Where.BEFORE_LLM, Where.INSIDE_LLM)]
        inside = [seam.reader for seam in self._seams if isinstance(seam, InsideEncoder)]
        self._encoder = EncoderCues(adapter, behind, inside)
        # Whether layers run otherwise than they would on what enters the language model.
        self._guided_stages = [stage for stage in stages if stage.method.guide is not None]
        asked = bool(self._edits or bias or self._experts)
        self._deep = asked or any(stage.where is not Where.BEFORE_LLM for stage in stages)
        try:
            self._install()
            _ATTACHED[adapter.text] = self
            announce(note for stage in self._stages for note in (stage.method.note, stage.note))
        except BaseException:  # also of a note, or of who is logged to: nobody could detach it
            self.detach()
            raise

    def __enter__(self) -> Pruning:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.detach()

    def __repr__(self) -> str:
        stages = ", ".join(map(str, self._stage_reports())) or "nothing is dropped"
        state = "attached to" if self.attached else "detached from"
        return f"Pruning({state} {self._adapter.class_name}: {stages})"

    @property
    def attached(self) -> bool:
        """Whether the model is being pruned."""
        return bool(self._hooks)

    @property
    def text(self) -> nn.Module:
        """The language model that is being pruned."""
        return self._adapter.text

    def detach(self) -> None:
        """Restore the model bit for bit. Detaching twice is harmless.

        Raises:
            RuntimeStateError: while another thread is in the middle of a call of the model.
        """
        here = threading.current_thread()
        if any(thread is not here and thread.is_alive() for thread in list(self._busy.values())):
            raise RuntimeStateError(
                "another thread is in the middle of a call of this model; detach pruning when it is through."
            )
        if self.attached:
            for layer in self._checkpointable_layers():
                function = vars(layer).get("_gradient_checkpointing_func")
                if isinstance(function, Checkpointing):
                    layer._gradient_checkpointing_func = function.function
        self._hooks.remove()
        if _ATTACHED.get(self._adapter.text) is self:
            del _ATTACHED[self._adapter.text]

    def report(self) -> Report:
        """The account of the calling thread's latest prefill with images, or another thread's if it had none itself.

        Raises:
            RuntimeStateError: before any such prefill.
        """
        state = self._last
        if state is None:
            raise RuntimeStateError("nothing to report yet: run the model on a prompt with an image first.")
        stages = self._stage_reports()
        again = {layer: float(len(asked)) for layer, asked in self._edits.items()}
        experts = self._experts
        if experts is None:
            return build_report(state, self._adapter, self._cost, stages, again)
        for layer, times in experts.attention_again().items():
            again[layer] = again.get(layer, 0.0) + times
        return build_report(state, self._adapter, self._cost, stages, again, experts.report)

    def _stage_reports(self) -> list[StageReport]:
        return [StageReport(one.method.name, one.layer, one.budget, one.where) for one in self._stages]

    @property
    def _last(self) -> ForwardState | None:
        return self._stack.latest or self._finished

    # -- what is put in place

    def _build_seams(self, bias: LogitBias | None, positions: Positions) -> list[Seam]:
        """The seams in the order in which they act."""
        adapter, text = self._adapter, self._adapter.text
        at: dict[Where, list[Stage]] = {where: [] for where in Where}
        for stage in self._stages:
            at[stage.where].append(stage)
        inside = tuple(at[Where.INSIDE_LLM])
        seams: list[Seam] = []
        if at[Where.BEFORE_ENCODER] or at[Where.INSIDE_ENCODER]:
            blocks = blocks_of(adapter)
            seams += [BeforeEncoder(stage, adapter, blocks) for stage in at[Where.BEFORE_ENCODER]]
            seams += [InsideEncoder(stage, adapter, blocks) for stage in at[Where.INSIDE_ENCODER]]
            seams.append(blocks)  # behind those who tell it what to leave out
        before = next(iter(at[Where.BEFORE_LLM]), None)
        seams.append(BeforeLlm(before, positions, adapter))
        if adapter.deepstack is not None:
            seams.append(DeepStackRows(adapter.deepstack, inside[0].layer if inside else None))
        seams.append(InsideLlm(inside, adapter))
        if self._edits:
            seams.append(AttentionEdits(self._edits, text.layers))
        if bias is not None:
            seams.append(AttentionBias(bias, text))
        if self._experts is not None:
            seams.append(self._experts)
        return seams

    def _install(self) -> None:
        adapter, hooks, stack = self._adapter, self._hooks, self._stack
        forget_compiled()
        hooks.replace(
            adapter.model, "generate", _GenerateCall(adapter.model.generate, stack, self._busy, self._check_chunks)
        )
        if hasattr(adapter.model, "loss_function"):
            hooks.replace(adapter.model, "_loss_function", ShortenedLoss(adapter.model.loss_function, stack))
        hooks.before(adapter.model, self._enter_model)
        hooks.before(adapter.base, self._enter_base)
        hooks.after(adapter.base, self._leave_base, always=True)
        hooks.before(adapter.vision, self._enter_encoder)
        hooks.after(adapter.vision, self._leave_encoder, always=True)
        hooks.before(adapter.text, self._enter_language_model)
        hooks.after(adapter.text, self._leave_language_model)
        self._encoder.install(hooks, stack)
        if self._guide is not None:
            self._guide.install(hooks)
        for seam in self._seams:
            seam.install(hooks, stack)
        for index, layer in enumerate(adapter.text.layers):
            seams = [seam for seam in self._seams if index in seam.layers]
            if seams:
                hooks.before(layer, functools.partial(self._enter_layer, seams, index))
                hooks.after(layer, functools.partial(self._leave_layer, seams, index))

    def _checkpointable_layers(self) -> list[Any]:
        return [*self._adapter.text.layers, *self._adapter.vision_layers()]

    # -- what happens in a call

    def _enter_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if not self._stages:
            return None
        self._stack.survivors = None
        if kwargs.get("labels") is not None:
            check_labels(module, self._stages)
        asked = kwargs.get("logits_to_keep")
        places = asked.clone() if isinstance(asked, Tensor) else None
        self._stack.logits_request = asked, places
        # A copy, to be filled in when it is known where its tokens have gone.
        return None if places is None else (args, {**kwargs, "logits_to_keep": places})

    def _enter_base(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        stack = self._stack
        call = Call(mask=kwargs.get("attention_mask"))
        stack.begin(call)
        if (held := state_of(cache_of(kwargs))) is not None:
            held.running = False  # it may be left from a forward that failed
        self._busy[id(call)] = threading.current_thread()
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None:
            call.prompt, call.length = self._prompt_length(ids, cache_of(kwargs)), ids.shape[1]
            if ids.shape[1] > 1:  # a decoding step holds no image; not looking saves it a wait for the GPU
                call.spans = self._spans(call, ids, kwargs)
                if self._guide is not None and call.spans:
                    call.inputs = {**kwargs, "input_ids": ids}
        elif self._stages and not _length_of(cache_of(kwargs)):
            raise RuntimeStateError(
                "pruning needs input_ids to know where the images are; pass input_ids, "
                "or shorten the prompt with foveate.prune_inputs and run it without pruning attached."
            )

    def _leave_base(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._stack.calls[-1] if self._stack.calls else None
        self._busy.pop(id(call), None)
        self._stack.end()
        if call is not None and output is not None and call.spans and self._stages and not call.reached:
            raise RuntimeStateError(
                f"{self._adapter.class_name} ran on images without calling its language model with their embeddings, "
                "so nothing was pruned; it needs an adapter of its own, see docs/contributing/add_a_family.md."
            )

    def _prompt_length(self, ids: Tensor, cache: Any) -> int:
        """Tokens of `ids` that are prompt: generating without a cache repeats the prompt with what followed."""
        generations = self._stack.generations
        prompt = generations[-1].prompt if generations else None
        if cache is not None or prompt is None or not 0 < prompt.shape[1] < ids.shape[1]:
            return ids.shape[1]
        rows, some = divmod(len(ids), len(prompt))  # beams repeat a prompt
        if some or not torch.equal(ids[:, : prompt.shape[1]], prompt.repeat_interleave(rows, 0).to(ids.device)):
            return ids.shape[1]
        return prompt.shape[1]

    def _spans(self, call: Call, ids: Tensor, kwargs: dict[str, Any]) -> list[Span]:
        known = {k: v for k, v in kwargs.items() if v is not None}
        if not known.keys() & {"pixel_values", "pixel_values_videos"}:
            # generate that encodes images beforehand keeps their sizes to itself.
            given = self._stack.generations[-1].arguments if self._stack.generations else {}
            given = {k: v for k, v in given.items() if v is not None}
            modalities = modalities_in(self._adapter, ids, {**given, **known})
            if modalities:
                call.passes = self._find_earlier_passes(kwargs)
            known = {**given, **self._encoder.grid_inputs(modalities, call.passes), **known}
        return locate(self._adapter, ids, known)

    def _find_earlier_passes(self, kwargs: dict[str, Any]) -> list[EncoderPass]:
        """The passes for images that were encoded before this call: for it by generate, or by the caller."""
        stack, given = self._stack, kwargs.get("mm_encoder_outputs") or {}
        outputs = [given[modality] for modality in self._adapter.modalities if given.get(modality) is not None]
        passes = [
            next((one for one in reversed(stack.early_encodings) if one.is_source_of(output)), None)
            for output in outputs
        ]
        found = [one for one in passes if one is not None]
        if outputs and len(found) == len(outputs):
            return found
        if stack.generations:
            return list(stack.generations[-1].passes)
        if outputs and self._stages:
            raise RuntimeStateError(
                "mm_encoder_outputs were not made by this model's encoder while pruning was attached; encode the "
                "images again, or pass pixel_values."
            )
        return []

    def _enter_encoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        stack = self._stack
        self._follow_checkpointing()
        encoding, call = EncoderPass(args, kwargs, device_of(module, torch.device("cpu"))), stack.preparing
        stack.encoding = encoding
        if call is not None:
            call.passes.append(encoding)
        if stack.generations:
            stack.generations[-1].passes.append(encoding)
        if call is None and not stack.generations:
            stack.early_encodings = [one for one in stack.early_encodings if one.alive] + [encoding]
        encoding.watch.start()
        for seam in self._seams:
            seam.enter_encoder(encoding)

    def _leave_encoder(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        stack = self._stack
        if stack.encoding is not None:
            stack.encoding.finish(output)
            stack.latest_encoding, stack.encoding = stack.encoding, None

    def _enter_language_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        stack = self._stack
        if self._stages:
            stack.running()  # refuses gradients that run the whole language model again
        call, outer = stack.preparing or Call(), stack.forward
        stack.forward, stack.replaying = None, False
        embeds = kwargs.get("inputs_embeds")
        if call.spans and self._stages:
            self._adapter.check_call(args, kwargs, call.length, sum(len(span.grid) for span in call.spans), call.mask)
        if embeds is None:
            return None
        call.reached = True
        self._follow_checkpointing()
        cache = cache_of(kwargs)
        known = state_of(cache)
        if not self._stages and known is None and not call.spans:
            return None
        held = known or CacheState(self)
        held.check_against(cache)
        held.owner = self
        mask = call.mask if isinstance(call.mask, Tensor) and call.mask.ndim == 2 else kwargs.get("attention_mask")
        past, own = int(_length_of(cache)), None
        if self._stages and isinstance(mask, Tensor) and mask.ndim == 2:
            check_length(mask, embeds.shape[1], past, held.given is not None)
        prunes = self._stages and (call.spans or held.pruned)
        if prunes and not stack.generations and mask is call.mask:
            own = custom_mask(mask, embeds.shape[1], past + embeds.shape[1])
        state = ForwardState(call, held, embeds, mask, own, past)
        if prunes and own is None and state.length > 1:
            unmasked = functools.partial(unmasked_of, self._adapter.text, cache, state.length)
            state.bidirectional = read_bidirectional(kwargs.get("attention_mask"), state.given, unmasked)
        held.running = True
        state.reentrant, state.outer = self._reentrant(), outer
        if call.spans and self._stages:
            self._check(state, kwargs)
            state.selection_watch.start()
            state.encoder_cues = self._encoder.read(call.passes, call.spans)
            if self._guide is not None and any(groups_of(one, state).drops for one in self._guided_stages):
                generation = stack.generations[-1] if stack.generations else None
                state.encoder_cues = {**state.encoder_cues, **self._guide.read(state, generation)}
            state.encoder_kept = self._encoder.kept(call.passes, call.spans)
            state.selection_watch.stop()
        stack.forward = state
        kwargs = dict(kwargs)
        ids = kwargs.get("position_ids")
        if ids is not None and past and ids.shape[-1] == past + state.length:  # of a mask that counts the cache
            kwargs["position_ids"] = ids[..., past:]
        for seam in self._seams:
            seam.enter_language_model(state, kwargs)
        if cache is not None and held.pruned:
            mark(cache, held)
        state.prefill_watch.start()
        return args, kwargs

    def _check(self, state: ForwardState, kwargs: dict[str, Any]) -> None:
        """Raise RuntimeStateError for a prompt whose images cannot be pruned, before anything is changed."""
        sequences = kwargs.get("cu_seq_lens_q")
        packed = sequences is not None and len(sequences) > 2
        alone = state.call.mask is None and cache_of(kwargs) is None  # where transformers itself looks for packing
        if packed or is_packed(kwargs.get("position_ids"), state.given, alone):
            raise RuntimeStateError(
                "several prompts are packed into one row (their positions start anew), whose images cannot be pruned; "
                "pass the prompts as rows of a padded batch."
            )
        if not self._stack.generations:
            check_logits_to_keep(state, state.call.logits_to_keep)
        attention = Cue.of(Source.LAYER_BELOW, Source.LAYERS_BELOW, Source.LAYER)
        readers = [one.method for one in self._stages if one.method.needs & attention]
        if state.custom_mask is not None and readers:
            check_last_row(state.custom_mask, state.given, state.spans, readers[0].name)

    def _check_chunks(self, prompt: Tensor | None, options: dict[str, Any]) -> None:
        """Raise RuntimeStateError where generate would take in a prompt with images piece by piece."""
        given = options.get("generation_config") or getattr(self._adapter.model, "generation_config", None)
        size = options.get("prefill_chunk_size", getattr(given, "prefill_chunk_size", None))
        if not self._stages or not size or prompt is None:
            return
        if modalities_in(self._adapter, prompt, options):
            raise RuntimeStateError(
                f"prefill_chunk_size={size} cuts prompts into pieces, and images cannot be pruned so; leave "
                "prefill_chunk_size out: pruned prompts are short."
            )

    def _leave_language_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        stack, state = self._stack, self._stack.forward
        if state is None:
            return
        hidden = hidden_of(output)
        state.prefill_watch.stop(None if hidden is None else hidden.device)
        state.cache.running = False
        for seam in self._seams:
            seam.finish(state)
        cache = cache_of_output(output)
        if cache is not None and state.cache.pruned:
            mark(cache, state.cache)  # a cache that the language model made itself
        places, state.call.logits_places = state.call.logits_places, None
        if places is not None:
            place_logits_to_keep(state, len(self._adapter.text.layers), places)
        # Others are handed it as well, but leave it to the model around them.
        if "logits_to_keep" in kwargs and "logits_to_keep" in inspect.signature(type(module).forward).parameters:
            keep_logits(output, state.length, kwargs["logits_to_keep"] if places is None else places)
        stack.survivors = state.before
        state.release()
        if state.spans:
            stack.latest = self._finished = state
        stack.forward, state.outer = state.outer, None

    def _enter_layer(
        self, seams: Sequence[Seam], index: int, layer: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        state = self._stack.running()
        if state is None:
            return None
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        if len(args) > 1:  # by name, so that seams find what there is for each token
            names = list(inspect.signature(layer.forward).parameters)[1 : len(args)]
            args, kwargs = args[:1], {**kwargs, **dict(zip(names, args[1:], strict=True))}
        for seam in seams:
            hidden = seam.enter_layer(state, index, layer, hidden, kwargs)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def _leave_layer(
        self, seams: Sequence[Seam], index: int, layer: nn.Module, args: Any, kwargs: Any, out: Any
    ) -> Any:
        state = self._stack.running()
        if state is None:
            return out
        hidden = out[0] if isinstance(out, tuple) else out
        for seam in seams:
            hidden = seam.leave_layer(state, index, hidden)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    # -- layers that run again for their gradients

    def _follow_checkpointing(self) -> None:
        """Let layers find their forward where gradient checkpointing runs them once more."""
        if not self._stages or not self._adapter.model.training or not torch.is_grad_enabled():
            return
        for layer in self._checkpointable_layers():
            function = vars(layer).get("_gradient_checkpointing_func")
            if function is not None and not isinstance(function, Checkpointing):
                layer._gradient_checkpointing_func = Checkpointing(function, self._snapshot)

    def _reentrant(self) -> bool:
        """Whether the language model's layers are checkpointed such that gradients pass their arguments only."""
        if not self._adapter.model.training or not torch.is_grad_enabled():
            return False
        layers = [layer for layer in self._adapter.text.layers if getattr(layer, "gradient_checkpointing", False)]
        functions = [vars(layer).get("_gradient_checkpointing_func") for layer in layers]
        return any(isinstance(function, Checkpointing) and function.reentrant for function in functions)

    def _snapshot(self) -> Callable[[bool], AbstractContextManager[None]]:
        stack = self._stack
        forward, encoding = stack.forward, stack.encoding

        def resume(again: bool) -> AbstractContextManager[None]:
            if again and self._deep and not self.attached:
                raise RuntimeStateError(
                    "gradient checkpointing runs layers again that were pruned, but pruning is detached; call backward "
                    "before you detach it, inside the with block."
                )
            return stack.resume(forward, encoding, again)

        return resume


class _GenerateCall(Attached):
    """Stands in for a model's ``generate``: what is encoded within a call of it belongs to its prompt."""

    def __init__(
        self,
        function: Callable[..., Any],
        stack: CallStack,
        busy: dict[int, threading.Thread],
        check: Callable[[Tensor | None, dict[str, Any]], None],
    ) -> None:
        functools.update_wrapper(self, function)
        self._function, self._stack, self._busy, self._check = function, stack, busy, check

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        prompt = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        prompt = prompt if isinstance(prompt, Tensor) else None
        self._check(prompt, kwargs)
        stack, generation = self._stack, Generation(prompt, kwargs)
        depth, under = len(stack.calls), (stack.forward, stack.encoding)
        stack.generations.append(generation)
        self._busy[id(generation)] = threading.current_thread()
        try:
            return self._function(*args, **kwargs)
        finally:  # whatever was interrupted inside is over
            stack.generations.pop()
            for call in stack.calls[depth:]:
                self._busy.pop(id(call), None)
            del stack.calls[depth:], self._busy[id(generation)]
            stack.forward, stack.encoding = under


def is_pruned(adapter: ModelAdapter) -> bool:
    """Whether pruning is attached to a model."""
    return adapter.text in _ATTACHED  # which shallow copies of a model share


def _length_of(cache: Any) -> Any:
    return 0 if cache is None else cache.get_seq_length()
