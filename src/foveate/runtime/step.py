"""What is known during one forward of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..tokens import Cue
from .cache import CacheState
from .kept import Kept
from .prompt import Span
from .report import Stopwatch


@dataclass(frozen=True)
class Words:
    """The text of each prompt of a forward, left-padded.

    Args:
        index: (B, M) long, into the L tokens before any pruning; of which `valid` (B, M) are real.
        embeddings: (B, M, d) what enters the language model.
        keys: (B, M) L1 lengths of their keys in the layer below, or None.
        states: (B, M, d) hidden states that enter the layer, or None.
        norm: (d,) the weights of the language model's last norm, or None.
    """

    index: Tensor
    valid: Tensor
    embeddings: Tensor
    keys: Tensor | None = None
    states: Tensor | None = None
    norm: Tensor | None = None


@dataclass
class Step:
    """State of one forward; made anew when the model is called.

    `mask` is the (B, S) or prepared attention mask as the caller gave it. `valid` (B, P) marks the real entries that
    the first decoder layer attends to, past ones included; `past` of them were there before.
    """

    spans: list[Span] = field(default_factory=list)
    mask: Any = None
    length: int = 0  # tokens of this forward, before any pruning
    prompt: int = 0  # of them, those that belong to the prompt
    state: CacheState | None = None
    encoder_cues: dict[Cue, list[Tensor]] = field(default_factory=dict)
    encoder_watch: Stopwatch | None = None
    selection_watch: Stopwatch | None = None
    prefill_watch: Stopwatch | None = None
    valid: Tensor | None = None
    past: int = 0
    chunk_valid: Tensor | None = None  # (B, L) before any pruning
    seen: list[Tensor] | None = None  # by span: which tokens entered the vision encoder's blocks; None: all
    kept_before: Kept | None = None
    inside: dict[int, Kept] = field(default_factory=dict)  # by stage: who of the L tokens is left from that layer on
    heard: dict[int, dict[Cue, list[Tensor]]] = field(default_factory=dict)  # by stage: cues of the layer below it
    text_keys: dict[int, Tensor] = field(default_factory=dict)  # by stage: (B, M) of the text, in the layer below it
    readings: dict[int, list[Tensor]] = field(default_factory=dict)  # by LLM layer: the row of each span
    contributions: list[list[Tensor]] = field(default_factory=list)  # by layer in which they were read, and by span
    words: Words | None = None  # the prompt's text, where a stage inside the LLM reads it
    far: Tensor | None = None  # (B, W, W) what distance adds to the attention logits
    embeds: Tensor | None = None  # (B, W, d) that entered the language model, where such a stage reads them
    memo: dict[Any, Any] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)  # real tokens of each prompt, before any pruning

    def begin(self, state: CacheState, embeds: Tensor, mask: Any, past_logical: int) -> None:
        """Fill in what the seams read, before any of them changes anything."""
        batch, self.length = embeds.shape[:2]
        self.state, mask = state, without_kinds(mask)
        if state.before is not None:
            past = state.before.valid.shape[1]
            now = key_validity(mask, batch, past_logical + self.length, embeds.device)[:, -self.length :]
            if now.shape[1] != self.length or (mask is not None and mask.ndim == 4):
                # A prepared mask counts the cache's physical entries; generate pads no token after the prompt.
                now = torch.ones(batch, self.length, dtype=torch.bool, device=embeds.device)
            self.valid, self.past = torch.cat([state.before.valid, now], 1), past
        else:
            self.valid = key_validity(mask, batch, past_logical + self.length, embeds.device)
            self.past = past_logical
        self.chunk_valid = self.valid[:, self.past :]
        if self.spans:
            self.lengths = self.chunk_valid.sum(1).tolist()

    def text(self) -> Tensor:
        """(B, L) bool: the prompt's text in this forward, which on a cache of earlier turns is that of this turn.

        Neither placeholders nor padding, nor what was generated since.
        """
        assert self.chunk_valid is not None
        text = self.chunk_valid.clone()
        text[:, self.prompt :] = False
        for span in self.spans:
            text[span.row, span.index] = False
        return text

    def keys(self, layer: int) -> tuple[Tensor, int]:
        """What a layer attends to: (B, P) bool, its real entries, and how many of the P were cached before."""
        below = self.stage_below(layer + 1)
        if below is None:
            assert self.valid is not None
            return self.valid, self.past
        assert self.state is not None
        valid = self.state.inside[below].valid
        return valid, valid.shape[1] - self.inside[below].index.shape[1]

    def read(self, embeds: Tensor) -> Words:
        """The prompt's text, given what enters the language model of it, (B, W, d) after pruning before it."""
        text = Kept.of(self.text())
        rows = torch.arange(len(embeds), device=embeds.device)[:, None]
        place = self.placed(text.index, rows, 0).clamp_min(0)
        return Words(text.index, text.valid, embeds[rows, place])

    @property
    def unseen(self) -> Tensor | None:
        """(B, L) bool: visual tokens that never entered the vision encoder; None where there are none."""
        if self.seen is None or all(bool(seen.all()) for seen in self.seen):
            return None
        assert self.chunk_valid is not None
        unseen = torch.zeros_like(self.chunk_valid)
        for span, seen in zip(self.spans, self.seen, strict=True):
            unseen[span.row, span.index] = ~seen
        return unseen

    @property
    def encoded(self) -> Tensor:
        """(B, L) bool: real tokens but for those that never entered the vision encoder."""
        assert self.chunk_valid is not None
        return self.chunk_valid if self.unseen is None else self.chunk_valid & ~self.unseen

    def stage_below(self, layer: int) -> int | None:
        """The last pruning layer under `layer` at which this forward goes through a shortened cache."""
        return max((stage for stage in self.inside if stage < layer), default=None)

    def places(self, layer: int) -> Tensor | None:
        """(B, L): where each of the prompt's tokens lies in the input of a layer, -1 if dropped; None: all in place."""
        place = None if self.kept_before is None else place_of(self.kept_before)
        below = self.stage_below(layer)
        if below is None:
            return place
        inner = place_of(self.inside[below])
        return inner if place is None else inner.gather(1, place.clamp_min(0)).masked_fill(place < 0, -1)

    def placed(self, index: Tensor, rows: Tensor | int, layer: int) -> Tensor:
        """Where prompt tokens, by `index` in their `rows`, lie in the input of a layer; -1 where dropped before."""
        place = self.places(layer)
        return index if place is None else place[rows, index.to(place.device)]

    def of_spans(self, values: Tensor, layer: int) -> list[Tensor]:
        """The part of each span of `values` (B, W, ...), one for each token that enters a layer; 0 where dropped."""
        found = []
        for span in self.spans:
            index = self.placed(span.index, span.row, layer).to(values.device)
            part = values[span.row, index.clamp_min(0)]
            found.append(part.masked_fill((index < 0).view(-1, *[1] * (part.ndim - 1)), 0))
        return found

    def of_words(self, values: Tensor, layer: int) -> Tensor:
        """(B, M, ...): the part of the prompt's text in `values` (B, W, ...), one for each token that enters a layer.

        Padding of the text has the values of some token.
        """
        assert self.words is not None
        rows = torch.arange(len(values), device=values.device)[:, None]
        return values[rows, self.placed(self.words.index, rows, layer).to(values.device).clamp_min(0)]

    def visual(self, layer: int, tokens: int) -> Tensor:
        """(tokens,) bool: which are visual of the tokens that enter a layer, B prompts one after the other."""
        assert self.chunk_valid is not None
        batch, place = len(self.chunk_valid), self.places(layer)
        visual = torch.zeros(batch, tokens // batch, dtype=torch.bool, device=self.chunk_valid.device)
        for span in self.spans:
            index = span.index if place is None else place[span.row, span.index]
            visual[span.row, index[index >= 0]] = True
        return visual.flatten()

    def of_prompt(self, valid: Tensor) -> Tensor:
        """`valid` (B, P) without what was generated since, which comes last and is never dropped."""
        end = valid.shape[1] - (self.length - self.prompt)
        return valid & (torch.arange(valid.shape[1], device=valid.device) < end)

    def once(self, layer: int, kind: str, value: Any, make: Callable[[], Any]) -> Any:
        """Compute once per stage and distinct argument: all layers are handed the same objects."""
        key = (layer, kind, id(value))
        if key not in self.memo:
            self.memo[key] = (value, make())  # the value is kept alive, so that its id stays unique
        return self.memo[key][1]

    def let_go(self) -> None:
        """Drop what is of no more use after the forward, and large."""
        self.memo, self.encoder_cues, self.heard, self.text_keys, self.contributions = {}, {}, {}, {}, []
        self.readings, self.words, self.embeds, self.far = {}, None, None, None


def without_kinds(mask: Any) -> Any:
    """The mask of full-attention layers, where generate prepared one for each kind of layer."""
    return mask.get("full_attention") if isinstance(mask, Mapping) else mask


def key_validity(mask: Any, batch: int, length: int, device: torch.device) -> Tensor:
    """Which of `length` keys are real, (B, length) bool, read off any mask that transformers passes around."""
    mask = without_kinds(mask)
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if mask.ndim == 4:
        mask = mask[:, 0, -1]  # the last query sees every real key
        mask = mask if mask.dtype == torch.bool else mask == 0
    mask = mask[:, :length].to(device).bool()
    return mask.expand(batch, -1)


def place_of(kept: Kept) -> Tensor:
    """(B, L): where each token of the forward lies among the survivors, -1 if dropped."""
    batch, width = kept.index.shape
    place = torch.full((batch, kept.length + 1), -1, dtype=torch.long, device=kept.index.device)
    here = torch.arange(width, device=kept.index.device).expand(batch, -1)
    # Padding entries are sent to a spare last column, so that they overwrite nothing.
    place.scatter_(1, torch.where(kept.valid, kept.index, kept.length), here)
    return place[:, :-1]
