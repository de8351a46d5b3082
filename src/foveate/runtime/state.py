"""What is known during one call of the model, in the thread that calls it.

Nothing here outlives its call but what a report reads. `CallStack` holds the calls that are under way in each thread.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import RuntimeStateError
from ..grouping import PromptText, Span
from ..models.encoder_cues import EncoderTrace
from ..tokens import Cue
from .cache import CacheLayout, CacheState, TokenIndex
from .masks import key_validity, one_mask
from .timing import Stopwatch


def _nothing() -> None:
    """What a weak reference to something gone gives."""


@dataclass
class EncoderPass:
    """One forward of the encoder: all images, or all clips.

    Args:
        args: positional arguments of the encoder.
        kwargs: its keyword arguments.
        device: where it runs.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    device: torch.device
    # By block from which on tokens are left out, -1 being before all of them: of each image which (n,) go on.
    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    cues: dict[Cue, list[Tensor]] = field(default_factory=dict)  # read off its trace, once
    slots: dict[Any, Any] = field(default_factory=dict)  # what each seam keeps of this pass
    output: Callable[[], Tensor | None] = _nothing  # a weak reference, by which callers who encode ahead refer to it

    def __post_init__(self) -> None:
        self.trace = EncoderTrace(self.args, self.kwargs)
        self.watch, self.selection_watch = Stopwatch(self.device), Stopwatch(self.device)

    def finish(self, output: Any) -> None:
        """The encoder is through."""
        tensor = hidden_of(output)
        self.watch.stop(None if tensor is None else tensor.device)
        if tensor is not None:
            self.output = weakref.ref(tensor)

    @property
    def alive(self) -> bool:
        """Whether anybody still holds the output."""
        return self.output() is not None

    def is_source_of(self, outputs: Any) -> bool:
        """Whether `outputs`, what a caller hands to the model in the place of pixels, came from this pass."""
        mine, other = self.output(), hidden_of(outputs)
        return mine is not None and other is not None and mine.data_ptr() == other.data_ptr()


def hidden_of(output: Any) -> Tensor | None:
    """The hidden states among what an encoder returns."""
    if isinstance(output, Tensor):
        return output
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None and isinstance(output, (tuple, list)) and output:
        hidden = output[0]
    return hidden if isinstance(hidden, Tensor) else None


@dataclass
class Generation:
    """One call of ``generate``: its prompt (B, L), its other arguments, and the images that were encoded for it."""

    prompt: Tensor | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    passes: list[EncoderPass] = field(default_factory=list)
    guided: Any = None  # what a smaller model read of the prompt, once for all forwards of it


Under = tuple["ForwardState | None", "EncoderPass | None", "EncoderPass | None"]


@dataclass
class Call:
    """One call of the model, before its language model runs.

    Args:
        spans: the images of the prompt.
        prompt: how many of its tokens are prompt; generating without a cache repeats the prompt with what followed.
        length: how many tokens a row has.
        mask: as the caller gave it.
        passes: the encoder's passes for these images.
        reached: whether its embeddings came by where they are pruned.
    """

    spans: list[Span] = field(default_factory=list)
    prompt: int = 0
    length: int = 0
    mask: Any = None
    passes: list[EncoderPass] = field(default_factory=list)
    reached: bool = False
    inputs: Mapping[str, Any] = field(default_factory=dict)  # of the call, for a smaller model that reads them first
    logits_to_keep: Any = None  # as the caller asked for them, and where these tokens have gone
    logits_places: Tensor | None = None
    outer: Under = (None, None, None)  # what this thread was in the middle of; a hook of the user's may call the model


class ForwardState:
    """State of one forward of the language model.

    `valid` (B, P) marks the real entries that the first decoder layer attends to, past ones included; `past` of them
    were there before. `given` (B, L) marks the real tokens of this forward before any pruning, `lengths` counts them.
    """

    def __init__(self, call: Call, cache_state: CacheState, embeds: Tensor, mask: Any, own: Any, past: int) -> None:
        """Take in what the seams read, before any of them changes anything.

        Args:
            call: of the model.
            cache_state: of the KV cache, or a new one.
            embeds: (B, L, d) that enter the language model.
            mask: any that tells which tokens are real.
            own: the same, where the caller made it for pairs of tokens, of the sequence before pruning; or None.
            past: logical length of the cache.
        """
        self.call, self.spans, self.prompt, self.cache = call, call.spans, call.prompt, cache_state
        self.outer: ForwardState | None = None  # the forward in the middle of which this one began
        self.length = embeds.shape[1]
        # Of keys and values, which autocast makes in its own type; weights may be quantised.
        kind = embeds.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        self.value_bytes = (torch.get_autocast_dtype(kind) if autocast else embeds.dtype).itemsize
        self.custom_mask = own
        self.bidirectional: Any = None  # which later tokens each sees that enters the LLM, see `read_bidirectional`
        self.reentrant = False  # layers run again such that gradients pass through their arguments only
        cache_state.given = given = _real_tokens(cache_state, embeds, mask, own, past)
        self.given, self.valid, self.past = given[:, past:], given, past
        if cache_state.before is not None:
            self.valid = torch.cat([cache_state.before.valid, self.given], 1)
            self.past = cache_state.before.valid.shape[1]
        self.lengths: list[int] = self.given.sum(1).tolist() if self.spans else []
        # By block from which on the encoder left tokens out: of each span which (n,) go on from there.
        self.encoder_kept: dict[int, list[Tensor]] = {}
        self.encoder_cues: dict[Cue, list[Tensor]] = {}
        self.before: TokenIndex | None = None  # which of the L tokens enter the language model; None: all
        self.inside: dict[int, TokenIndex] = {}  # by stage: which of the L tokens are left from its layer on
        # By layer with experts how many of them real tokens went past, (2,): text and visual tokens.
        self.skipped_experts: dict[int, Tensor] = {}
        self.guided: Any = None  # what a smaller model read of the prompt
        self.slots: dict[Any, Any] = {}  # what each seam keeps of this forward
        self.encoder_watches = [one.watch for one in call.passes]
        self.selection_watches = [one.selection_watch for one in call.passes]
        self.selection_watch, self.prefill_watch = Stopwatch(embeds.device), Stopwatch(embeds.device)
        self.selection_watches.append(self.selection_watch)
        self._memo: dict[Any, Any] = {}

    def text_mask(self) -> Tensor:
        """(B, L) bool: the prompt's text in this forward, which on a cache of earlier turns is that of this turn.

        Neither placeholders, those that always stay included, nor padding, nor what was generated since.
        """
        text = self.given.clone()
        text[:, self.prompt :] = False
        for span in self.spans:
            text[span.row].index_fill_(0, span.index.to(text.device), False)
            if span.fixed is not None:
                text[span.row].index_fill_(0, span.fixed.to(text.device), False)
        return text

    @functools.cached_property
    def text(self) -> PromptText:
        """Where the prompt's text lies; found when it is first asked for."""
        found = TokenIndex.of(self.text_mask())
        return PromptText(found.index, found.valid)

    def keys(self, layer: int) -> tuple[Tensor, int]:
        """What a layer has seen: (B, P) bool, its real entries, and how many of the P were cached before."""
        below = self.stage_below(layer + 1)
        if below is None:
            return self.valid, self.past
        valid = self.cache.inside[below].valid
        return valid, valid.shape[1] - self.inside[below].index.shape[1]

    @property
    def unencoded(self) -> Tensor | None:
        """(B, L) bool: visual tokens that did not come through the vision encoder; None where there are none."""
        left = self.encoder_kept[max(self.encoder_kept)] if self.encoder_kept else []
        if all(bool(keep.all()) for keep in left):
            return None
        unencoded = torch.zeros_like(self.given)
        for span, keep in zip(self.spans, left, strict=True):
            unencoded[span.row, span.index.to(unencoded.device)] = ~keep.to(unencoded.device)
        return unencoded

    def stage_below(self, layer: int) -> int | None:
        """The last pruning layer under `layer` at which this forward goes through a shortened cache."""
        return max((stage for stage in self.inside if stage < layer), default=None)

    def places(self, layer: int) -> Tensor | None:
        """(B, L): where each of the prompt's tokens lies in the input of a layer, -1 if dropped; None: all in place."""
        place = None if self.before is None else self.before.places()
        below = self.stage_below(layer)
        if below is None:
            return place
        inner = self.inside[below].places()
        return inner if place is None else inner.gather(1, place.clamp_min(0)).masked_fill(place < 0, -1)

    def locate(self, index: Tensor, rows: Tensor | int, layer: int) -> Tensor:
        """Where prompt tokens, by `index` in their `rows`, lie in the input of a layer; -1 where dropped before."""
        place = self.places(layer)
        if place is None:
            return index
        return place[rows.to(place.device) if isinstance(rows, Tensor) else rows, index.to(place.device)]

    def by_span(self, values: Tensor, layer: int) -> list[Tensor]:
        """The part of each span of `values` (B, W, ...), one for each token that enters a layer; 0 where dropped."""
        found = []
        for span in self.spans:
            index = self.locate(span.index, span.row, layer).to(values.device)
            part = values[span.row, index.clamp_min(0)]
            found.append(part.masked_fill((index < 0).view(-1, *[1] * (part.ndim - 1)), 0))
        return found

    def by_text(self, values: Tensor, layer: int) -> Tensor:
        """(B, M, ...): the part of the prompt's text in `values` (B, W, ...), one for each token that enters a layer.

        Padding of the text has the values of some token.
        """
        rows = torch.arange(len(values), device=values.device)[:, None]
        return values[rows, self.locate(self.text.index, rows, layer).to(values.device).clamp_min(0)]

    def entering(self, layer: int) -> TokenIndex:
        """Which of this forward's tokens enter a layer, by their places behind the stage before the LLM."""
        below = self.stage_below(layer)
        return TokenIndex.everything(self.valid[:, self.past :]) if below is None else self.inside[below]

    def cached_layout(self, layer: int) -> CacheLayout:
        """What a layer at which nothing was ever dropped had seen before this forward."""
        below = self.stage_below(layer)
        if below is None:
            return CacheLayout.of_unpruned(self.valid[:, : self.past])
        return self.cache.inside[below].without_last(self.inside[below])

    def cut_positions(self, stage: int, kwargs: dict[str, Any]) -> None:
        """Cut a decoder layer's positions down to those that the stage at layer `stage` left."""
        kept = self.inside[stage]
        rotary = kwargs.get("position_embeddings")
        if rotary is not None:
            kwargs["position_embeddings"] = self.compute_once(("rotary", stage), rotary, lambda: kept.rotary(rotary))
        ids = kwargs.get("position_ids")
        if ids is not None:
            kwargs["position_ids"] = self.compute_once(("ids", stage), ids, lambda: kept.positions(ids))

    def visual_mask(self, layer: int, tokens: int) -> Tensor:
        """(tokens,) bool: which are visual of the tokens that enter a layer, B prompts one after the other."""
        batch, place = len(self.given), self.places(layer)
        width = tokens // batch + (place is not None)  # a column in front, which is cut off, takes who was dropped
        visual = torch.zeros(batch, width, dtype=torch.bool, device=self.given.device)
        for span in self.spans:
            index = span.index.to(visual.device)
            index = index if place is None else place[span.row, index] + 1  # 0 for those that were dropped
            visual[span.row].index_fill_(0, index, True)
        return visual.flatten() if place is None else visual[:, 1:].flatten()

    def without_generated(self, valid: Tensor) -> Tensor:
        """`valid` (B, P) without what was generated since, which comes last and is never dropped."""
        end = valid.shape[1] - (self.length - self.prompt)
        return valid & (torch.arange(valid.shape[1], device=valid.device) < end)

    def compute_once(self, key: tuple[Any, ...], value: Any, make: Callable[[], Any]) -> Any:
        """Compute once per key and distinct argument: layers are handed the same objects."""
        key = (*key, id(value))
        if key not in self._memo:
            self._memo[key] = (value, make())  # the value is kept alive, so that its id stays unique
        return self._memo[key][1]

    def release(self) -> None:
        """Drop what is of no more use after the forward, and large.

        Where gradients are wanted, layers may run again (gradient checkpointing), and read what the seams keep.
        """
        self.encoder_cues = {}
        if not torch.is_grad_enabled():
            self._memo, self.slots = {}, {}


def _real_tokens(cache: CacheState, embeds: Tensor, mask: Any, own: Any, past: int) -> Tensor:
    """(B, past + L) bool: the real tokens of the whole sequence before any pruning."""
    batch, length = embeds.shape[:2]
    pairs = one_mask(mask)
    if own is None and pairs is not None and pairs.ndim == 4 and cache.given is not None:
        pairs = None  # made by generate for what a layer of the cache holds; it pads no token after the prompt
    given = key_validity(pairs, batch, past + length, embeds.device)
    if cache.given is None:
        return given
    now = given[:, past:]
    if now.shape[1] != length:  # a mask that does not count the cache
        now = torch.ones(batch, length, dtype=torch.bool, device=embeds.device)
    return torch.cat([cache.given.to(now.device), now], 1)


class CallStack(threading.local):
    """What runs in the current thread: each thread that calls the model finds its own."""

    def __init__(self) -> None:
        self.generations: list[Generation] = []
        self.calls: list[Call] = []
        self.encoding: EncoderPass | None = None  # under way
        self.latest_encoding: EncoderPass | None = None  # the one that ended last
        self.early_encodings: list[EncoderPass] = []  # of images that a caller encodes before calling the model
        self.forward: ForwardState | None = None
        self.replaying = False  # a layer runs again for its gradients
        self.logits_request: tuple[Any, Tensor | None] = (
            None,
            None,
        )  # `logits_to_keep` of the call that is about to begin
        self.latest: ForwardState | None = None  # prefill with images
        self.survivors: TokenIndex | None = None  # who entered the language model in the latest call; None: all

    def begin(self, call: Call) -> None:
        """A call begins, perhaps in the middle of another."""
        call.logits_to_keep, call.logits_places = self.logits_request
        call.outer = self.forward, self.encoding, self.latest_encoding
        self.logits_request, self.forward, self.encoding = (None, None), None, None
        self.calls.append(call)

    def end(self) -> None:
        """The latest call is over, and what it interrupted goes on."""
        if self.calls:
            call = self.calls.pop()
            self.forward, self.encoding, self.latest_encoding = call.outer
            # Reports keep a forward, and with it its call, but not the pixels that its passes were given.
            call.outer, call.passes, call.inputs = (None, None, None), [], {}

    @property
    def preparing(self) -> Call | None:
        """The call whose language model has not begun; None where there is none, or an encoder is at work.

        A call that was interrupted from the keyboard never ends; it was in the middle of something.
        """
        return self.calls[-1] if self.calls and self.forward is None and self.encoding is None else None

    def running(self) -> ForwardState | None:
        """The forward of the language model that is under way; None where there is none.

        Raises:
            RuntimeStateError: where a layer runs again for its gradients and does not know of which forward.
        """
        if self.forward is None and torch._C._current_graph_task_id() != -1:  # autograd is computing gradients
            raise RuntimeStateError(
                "a layer of the pruned model runs again for its gradients by other means than transformers' gradient "
                "checkpointing; use model.gradient_checkpointing_enable() instead."
            )
        return self.forward

    @contextmanager
    def resume(self, forward: ForwardState | None, encoding: EncoderPass | None, replaying: bool) -> Iterator[None]:
        """Within it, this thread is in the middle of a forward that began earlier, perhaps in another thread."""
        held = self.forward, self.encoding, self.replaying
        self.forward, self.encoding, self.replaying = forward, encoding, replaying
        try:
            yield
        finally:
            self.forward, self.encoding, self.replaying = held
