"""From hidden states and spans to a keep mask: the one place where a method is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..budget import Budget
from ..errors import MethodError, ModelError
from ..methods import Method
from ..methods.merging import group_size
from ..tokens import Cue, Selection, VisualTokens
from .prompt import Span, padded_index
from .step import Words


@dataclass(frozen=True)
class Pools:
    """The images of a forward, grouped into the pools that share a budget."""

    spans: list[list[Span]]
    counts: list[int]  # upper bounds where the budget is by content
    by_content: bool = False

    @classmethod
    def of(cls, spans: list[Span], budget: Budget) -> Pools:
        """One pool per image or clip, per frame with ``scope="frame"``, or per prompt with ``scope="prompt"``."""
        if budget.scope == "image":
            groups = [[span] for span in spans]
        elif budget.scope == "frame":
            groups = [[frame] for span in spans for frame in span.frames()]
        else:
            groups = [[s for s in spans if s.row == row] for row in sorted({s.row for s in spans})]
        counts = budget.counts([sum(len(s.grid) for s in group) for group in groups])
        return cls(groups, counts, budget.by_content)

    @property
    def drops(self) -> bool:
        """Whether any pool loses a token, or may lose one where the budget is by content."""
        if self.by_content:
            return bool(self.spans)
        return any(c < sum(len(s.grid) for s in group) for group, c in zip(self.spans, self.counts, strict=True))


class Chosen(NamedTuple):
    """What a method made of a sequence.

    `keep` (B, W) is all true off the images; `hidden` (B, W, d) has the method's merges applied; `sizes` (B, W, 2), for
    methods with a `bias`, tells how many tokens each stands for: on average in its image, and by what was merged into
    it; 1 off the images.
    """

    keep: Tensor
    hidden: Tensor
    sizes: Tensor | None = None


def choose(
    method: Method,
    pools: Pools,
    hidden: Tensor,
    place: Tensor | None,
    cues: dict[Cue, list[Tensor]],
    words: Words | None = None,
) -> Chosen:
    """Ask the method once for all pools.

    Args:
        hidden: (B, W, d), the sequence to be shortened.
        place: (B, L) where each of the prompt's tokens lies in `hidden` now (-1: dropped before), or None for W = L.
        cues: per cue one tensor (n, ...) per span, in the order of the prompt's spans.
        words: the prompt's text, for methods that read it; None for others.

    """
    rows, index = padded_index(pools.spans, hidden.device)
    if place is not None:
        index = torch.where(index >= 0, place[rows[:, None], index.clamp_min(0)], index)
    alive = index >= 0
    at = (rows[:, None].expand_as(index), index.clamp_min(0))
    grids = tuple(tuple(span.grid for span in pool) for pool in pools.spans)
    given = {cue.name.lower(): _pooled(values, pools) for cue, values in cues.items()}
    if words is not None:
        last = torch.tensor([int(pool[-1].index[-1]) for pool in pools.spans], device=words.index.device)
        follows = (words.index[rows] > last[:, None]) & words.valid[rows]
        given |= {"text_embeddings": words.embeddings[rows], "text_valid": words.valid[rows], "text_follows": follows}
        if words.keys is not None:
            given["text_keys"] = words.keys[rows]
        if words.states is not None:
            given["text_states"] = words.states[rows]
        if words.norm is not None:
            given["last_norm"] = words.norm.expand(len(rows), -1)
    features = hidden[at].masked_fill(~alive[..., None], 0.0)
    tokens = VisualTokens(features, grids, alive=alive, **given)
    wanted = _by_content(method, tokens) if pools.by_content else torch.tensor(pools.counts, device=hidden.device)
    count = torch.minimum(wanted, alive.sum(1))
    selection = method.select(tokens, count)
    chosen = selection.keep & alive
    if not torch.equal(chosen.sum(1), count):
        raise MethodError(f"{method.name} kept {chosen.sum(1).tolist()} tokens where {count.tolist()} were asked for.")
    keep = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    dropped = alive & ~chosen
    keep[at[0][dropped], at[1][dropped]] = False
    if selection.target is not None:
        hidden = hidden.clone()
        hidden[at[0][chosen], at[1][chosen]] = selection.merged(features)[chosen]
    return Chosen(keep, hidden, None if method.bias is None else _sizes(keep, at, alive, count, selection))


def _sizes(keep: Tensor, at: tuple[Tensor, Tensor], alive: Tensor, count: Tensor, selection: Selection) -> Tensor:
    """(B, W, 2): see `Chosen`."""
    sizes = torch.ones(*keep.shape, 2, device=keep.device)
    mean = (alive.sum(1) / count.clamp_min(1))[:, None].expand(alive.shape)
    merged = torch.ones_like(mean) if selection.target is None else group_size(selection.target)
    chosen = selection.keep & alive
    sizes[at[0][chosen], at[1][chosen]] = torch.stack([mean, merged], -1)[chosen]
    return sizes


def _by_content(method: Method, tokens: VisualTokens) -> Tensor:
    """How many tokens of each pool the method wants to keep, at least as many as it must leave: (P,) long."""
    counts = method.counts(tokens)
    if counts is None or counts.shape != tokens.features.shape[:1] or counts.is_floating_point():
        raise MethodError(
            f"{method.name} must give one whole number for each of {len(tokens.grids)} pools with keep='auto', but "
            f"gave {counts}; give keep a fraction such as 0.25 instead."
        )
    return counts.to(tokens.features.device, torch.long).clamp_min(0 if method.may_drop_all else 1)


def _pooled(values: list[Tensor], pools: Pools) -> Tensor:
    """Cue tensors of all spans, in the order of the pools, cut into pools and padded to (P, N, ...)."""
    sizes = [sum(len(span.grid) for span in pool) for pool in pools.spans]
    given = sum(map(len, values))
    if given != sum(sizes):
        raise ModelError(
            f"the encoder gave {given} values for images of {sum(sizes)} tokens; "
            "prune with images passed to this forward, or use a method without encoder cues."
        )
    return torch.nn.utils.rnn.pad_sequence(torch.cat(values).split(sizes), batch_first=True)
