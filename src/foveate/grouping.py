"""Images grouped into the pools that share a budget, and the one call of a method for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .budget import Budget
from .errors import MethodError, ModelError
from .methods import Method
from .methods.toolkit.merging import group_size
from .tokens import Cue, Grid, Selection, VisualTokens


@dataclass(frozen=True)
class Span:
    """One image or clip: the batch row it belongs to and the index of each of its tokens in that row."""

    row: int
    modality: str
    order: int
    grid: Grid
    index: Tensor

    def frames(self) -> list[Span]:
        """Each frame of a clip as a span of its own."""
        one = self.grid.frame
        return [Span(self.row, self.modality, self.order, one, part) for part in self.index.split(len(one))]


@dataclass(frozen=True)
class PromptText:
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


@dataclass(frozen=True)
class TokenGroups:
    """The images of a forward, grouped into the pools that share a budget."""

    spans: list[list[Span]]
    counts: list[int]  # upper bounds where the budget is by content
    by_content: bool = False

    @classmethod
    def of(cls, spans: Sequence[Span], budget: Budget) -> TokenGroups:
        """One pool per image or clip, per frame with ``scope="frame"``, or per prompt with ``scope="prompt"``."""
        if budget.scope == "image":
            pools = [[span] for span in spans]
        elif budget.scope == "frame":
            pools = [[frame] for span in spans for frame in span.frames()]
        else:
            pools = [[s for s in spans if s.row == row] for row in sorted({s.row for s in spans})]
        counts = budget.counts([sum(len(s.grid) for s in pool) for pool in pools])
        return cls(pools, counts, budget.by_content)

    @property
    def drops(self) -> bool:
        """Whether any pool loses a token, or may lose one where the budget is by content."""
        if self.by_content:
            return bool(self.spans)
        return any(c < sum(len(s.grid) for s in pool) for pool, c in zip(self.spans, self.counts, strict=True))

    def padded_index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows (P,) and token indices (P, N), padded with -1, of the pools."""
        rows = torch.tensor([pool[0].row for pool in self.spans], device=device)
        flat = [torch.cat([span.index.to(device) for span in pool]) for pool in self.spans]
        return rows, pad_sequence(flat, batch_first=True, padding_value=-1)


@dataclass(frozen=True)
class Merge:
    """The merges of a selection, to be applied to the sequence that it was made of, with gradients or without.

    Args:
        at: rows and columns (P, N) of the pools' tokens in the sequence.
        alive: (P, N) bool, the tokens that were there.
        kept: (P, N) bool, those that stay.
        selection: of the method.
    """

    at: tuple[Tensor, Tensor]
    alive: Tensor
    kept: Tensor
    selection: Selection

    def apply(self, hidden: Tensor) -> Tensor:
        """`hidden` (B, W, d) with the merged values in the place of the kept tokens."""
        features = hidden[self.at].masked_fill(~self.alive[..., None], 0.0)
        merged = self.selection.merged(features)[self.kept]
        return hidden.index_put((self.at[0][self.kept], self.at[1][self.kept]), merged)


class Choice(NamedTuple):
    """What a method made of a sequence.

    `keep` (B, W) is all true off the images. `merge` is None for methods that drop. `sizes` (B, W, 2), for methods
    with a `bias`, tells how many tokens each stands for: on average in its image, and by what was merged into it; 1
    off the images.
    """

    keep: Tensor
    merge: Merge | None
    sizes: Tensor | None = None

    def merged(self, hidden: Tensor) -> Tensor:
        """The sequence (B, W, d) with the method's merges applied."""
        return hidden if self.merge is None else self.merge.apply(hidden)


@torch.no_grad()
def choose(
    method: Method,
    groups: TokenGroups,
    hidden: Tensor,
    place: Tensor | None,
    cues: Mapping[Cue, Sequence[Tensor]],
    text: PromptText | None = None,
) -> Choice:
    """Ask the method once for all pools.

    Args:
        method: bound to the model.
        groups: the pools, with their budgets.
        hidden: (B, W, d), the sequence to be shortened.
        place: (B, L) where each of the prompt's tokens lies in `hidden` now (-1: dropped before), or None for W = L.
        cues: per cue one tensor (n, ...) per span, in the order of the prompt's spans.
        text: the prompt's text, for methods that read it; None for others.

    Raises:
        MethodError: where the method does not keep what it was asked for.
        ModelError: where a cue does not fit the images.
    """
    rows, index = groups.padded_index(hidden.device)
    if place is not None:
        index = torch.where(index >= 0, place[rows[:, None], index.clamp_min(0)], index)
    alive = index >= 0
    at = (rows[:, None].expand_as(index), index.clamp_min(0))
    grids = tuple(tuple(span.grid for span in pool) for pool in groups.spans)
    given = {cue.name.lower(): _pooled(values, groups) for cue, values in cues.items()}
    if text is not None:
        last = torch.tensor([int(pool[-1].index[-1]) for pool in groups.spans], device=text.index.device)
        follows = (text.index[rows] > last[:, None]) & text.valid[rows]
        given |= {"text_embeddings": text.embeddings[rows], "text_valid": text.valid[rows], "text_follows": follows}
        if text.keys is not None:
            given["text_keys"] = text.keys[rows]
        if text.states is not None:
            given["text_states"] = text.states[rows]
        if text.norm is not None:
            given["last_norm"] = text.norm.expand(len(rows), -1)
    features = hidden[at].masked_fill(~alive[..., None], 0.0)
    tokens = VisualTokens(features, grids, alive=alive, **given)
    wanted = _by_content(method, tokens) if groups.by_content else torch.tensor(groups.counts, device=hidden.device)
    count = torch.minimum(wanted, alive.sum(1))
    selection = method.select(tokens, count)
    kept = selection.keep & alive
    if not torch.equal(kept.sum(1), count):
        raise MethodError(f"{method.name} kept {kept.sum(1).tolist()} tokens where {count.tolist()} were asked for.")
    keep = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    dropped = alive & ~kept
    keep[at[0][dropped], at[1][dropped]] = False
    merge = None if selection.target is None else Merge(at, alive, kept, selection)
    return Choice(keep, merge, None if method.bias is None else _sizes(keep, at, alive, count, selection))


def _sizes(keep: Tensor, at: tuple[Tensor, Tensor], alive: Tensor, count: Tensor, selection: Selection) -> Tensor:
    """(B, W, 2): see `Choice`."""
    sizes = torch.ones(*keep.shape, 2, dtype=torch.float32, device=keep.device)
    mean = (alive.sum(1).float() / count.clamp_min(1).float())[:, None].expand(alive.shape)
    merged = torch.ones_like(mean) if selection.target is None else group_size(selection.target)
    kept = selection.keep & alive
    sizes[at[0][kept], at[1][kept]] = torch.stack([mean, merged.float()], -1)[kept]
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


def _pooled(values: Sequence[Tensor], groups: TokenGroups) -> Tensor:
    """Cue tensors of all spans, in the order of the pools, cut into pools and padded to (P, N, ...)."""
    sizes = [sum(len(span.grid) for span in pool) for pool in groups.spans]
    given = sum(map(len, values))
    if given != sum(sizes):
        raise ModelError(
            f"the encoder gave {given} values for images of {sum(sizes)} tokens; "
            "prune with images passed to this forward, or use a method without encoder cues."
        )
    return pad_sequence(torch.cat(list(values)).split(sizes), batch_first=True)
