"""Images in groups that share a budget, and the one call of a method for all of them; for every engine and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .budget import AUTO, Budget, Conversation
from .devices import from_host
from .errors import MethodError, ModelError
from .methods import Method
from .methods.toolkit.distinct import FLOOR, SIMILARITY, count_distinct
from .methods.toolkit.merging import group_size
from .tokens import Cue, Grid, Selection, VisualTokens


@dataclass(frozen=True)
class Span:
    """One image or clip: the batch row it belongs to and the index of each of its tokens in that row.

    `fixed` are placeholders of it that stand for no token of the grid, such as the ends of lines: they always stay.
    """

    row: int
    modality: str
    order: int
    grid: Grid
    index: Tensor
    fixed: Tensor | None = None

    def frames(self) -> list[Span]:
        """Each frame of a clip as a span of its own."""
        one = self.grid.frame
        return [Span(self.row, self.modality, self.order, one, part) for part in self.index.split(len(one))]


@dataclass(frozen=True)
class PromptText:
    """Where the text of each prompt of a forward lies, left-padded.

    Args:
        index: (B, M) long, into the L tokens before any pruning.
        valid: (B, M) bool, which of them are real.
    """

    index: Tensor
    valid: Tensor


# A cue as it is read: for tokens of images one tensor (n, ...) per span or image, in order; for the text of the prompts
# (B, M, ...); for the whole model (d,).
ReadCue = Sequence[Tensor] | Tensor


@dataclass(frozen=True)
class TokenGroups:
    """The images of a forward, or of a step of a server, in the groups that share a budget."""

    spans: list[list[Span]]
    counts: list[int]  # how many tokens each keeps; upper bounds where the budget is by content
    auto: Budget | None = None  # the budget, where it is by content

    @classmethod
    def of(cls, spans: Sequence[Span], budget: Budget) -> TokenGroups:
        """One group per image or clip, per frame with ``scope="frame"``, or per prompt with ``scope="prompt"``.

        With a `Conversation` each image is a group, and those of a prompt share the budget by age.
        """
        if isinstance(budget.scope, Conversation):
            rows = [[span for span in spans if span.row == row] for row in sorted({span.row for span in spans})]
            counts = [count for row in rows for count in budget.split([len(span.grid) for span in row])]
            return cls([[span] for row in rows for span in row], counts)
        if budget.scope == "image":
            groups = [[span] for span in spans]
        elif budget.scope == "frame":
            groups = [[frame] for span in spans for frame in span.frames()]
        else:
            groups = [[s for s in spans if s.row == row] for row in sorted({s.row for s in spans})]
        counts = budget.counts([sum(len(s.grid) for s in group) for group in groups])
        return cls(groups, counts, budget if budget.by_content else None)

    @classmethod
    def join(cls, parts: Sequence[TokenGroups]) -> TokenGroups:
        """The groups of several, one after the other."""
        spans = [group for part in parts for group in part.spans]
        counts = [count for part in parts for count in part.counts]
        return cls(spans, counts, next((part.auto for part in parts if part.auto is not None), None))

    @property
    def sizes(self) -> list[int]:
        """Tokens in each group."""
        return [sum(len(span.grid) for span in group) for group in self.spans]

    @property
    def grids(self) -> tuple[tuple[Grid, ...], ...]:
        """The grids of each group, as `VisualTokens` wants them."""
        return tuple(tuple(span.grid for span in group) for group in self.spans)

    @property
    def drops(self) -> bool:
        """Whether any group loses a token, or may lose one where the budget is by content."""
        if self.auto is not None:
            return bool(self.spans)
        return any(count < size for count, size in zip(self.counts, self.sizes, strict=True))

    def padded_index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows (P,) and token indices (P, N), padded with -1, of the groups."""
        rows = from_host([group[0].row for group in self.spans], device)
        flat = [torch.cat([span.index.to(device) for span in group]) for group in self.spans]
        return rows, _pad(flat, -1)

    def pad(self, values: Sequence[Tensor]) -> Tensor:
        """(P, N, ...): tensors of all tokens, one after the other in the order of the groups, cut and padded.

        Args:
            values: (n, ...) of each span, or of each image where all groups lie within images.

        Raises:
            ModelError: where they are not as many as tokens.
        """
        sizes = self.sizes
        if [len(value) for value in values] == sizes:
            return _pad(values)
        given = sum(map(len, values))
        if given != sum(sizes):
            raise ModelError(
                f"the encoder gave {given} values for images of {sum(sizes)} tokens; "
                "prune with images passed to this forward, or use a method without encoder cues."
            )
        together = values[0] if len(values) == 1 else torch.cat(list(values))
        return _pad(together.split(sizes))


def _pad(values: Sequence[Tensor], filler: float = 0.0) -> Tensor:
    """(P, N, ...): tensors (n, ...) of several lengths as one, with a filler behind each; a copy."""
    if len({len(value) for value in values}) == 1:
        return torch.stack(list(values))
    return pad_sequence(list(values), batch_first=True, padding_value=filler)


@dataclass(frozen=True)
class Merge:
    """The merges of a selection, to be applied to the sequence that it was made of, with gradients or without.

    Args:
        at: rows and columns (P, N) of the groups' tokens in the sequence.
        alive: (P, N) bool, the tokens that were there.
        keep: (P, N) bool, those that stay.
        selection: of the method.
    """

    at: tuple[Tensor, Tensor]
    alive: Tensor
    keep: Tensor
    selection: Selection

    def apply(self, hidden: Tensor) -> Tensor:
        """`hidden` (B, W, d) with the merged values in the place of the kept tokens."""
        features = hidden[self.at].masked_fill(~self.alive[..., None], 0.0)
        merged = self.selection.merged(features)[self.keep]
        return hidden.index_put((self.at[0][self.keep], self.at[1][self.keep]), merged)


class Choice(NamedTuple):
    """What a method made of a sequence.

    `keep` (B, W) is all true off the images. `merge` is None for methods that drop. `sizes` (B, W, 2), for methods
    with a `bias`, tells how many tokens each stands for: on average in its image, and by what was merged into it; 1
    off the images.
    """

    keep: Tensor
    merge: Merge | None
    sizes: Tensor | None = None

    def apply_merge(self, hidden: Tensor) -> Tensor:
        """The sequence (B, W, d) with the method's merges applied."""
        return hidden if self.merge is None else self.merge.apply(hidden)


@torch.no_grad()
def choose(
    method: Method,
    groups: TokenGroups,
    hidden: Tensor,
    place: Tensor | None,
    cues: Mapping[Cue, ReadCue],
    text: PromptText | None = None,
) -> Choice:
    """Let the method choose once for all groups of a sequence.

    Args:
        method: bound to the model.
        groups: with their budgets.
        hidden: (B, W, d), the sequence to be shortened.
        place: (B, L) where each of the prompt's tokens lies in `hidden` now (-1: dropped before), or None for W = L.
        cues: as they were read; of tokens by span, in the order of the prompt's spans.
        text: where the prompt's text lies; needed by cues that tell of it.

    Raises:
        MethodError: where the method does not keep what it was asked for.
        ModelError: where a cue does not fit the images.
    """
    device = hidden.device  # a model's encoder and layers, where the rest was read, may lie on others
    rows, index = groups.padded_index(device)
    sizes, everyone = groups.sizes, place is None  # then the host knows what is there, and need not ask the device
    if place is not None:
        index = torch.where(index >= 0, place.to(device)[rows[:, None], index.clamp_min(0)], index)
    full = everyone and len(set(sizes)) <= 1
    alive = None if everyone else index >= 0
    at = (rows[:, None].expand_as(index), index if full else index.clamp_min(0))
    features = hidden[at] if full else hidden[at].masked_fill((index < 0)[..., None], 0.0)
    if text is not None:
        text = PromptText(text.index.to(device), text.valid.to(device))
    masks: dict[str, Tensor] = {} if text is None else _text_masks(groups, rows, text)
    given = {cue: _gather_cue(groups, rows, read, cue) for cue, read in cues.items()}
    tokens = VisualTokens(features, groups.grids, given, alive=alive, **masks)
    alive = tokens.valid
    if groups.auto is not None:
        count = torch.minimum(_count_by_content(method, tokens, groups), alive.sum(1))
    elif everyone:
        count = from_host([min(pair) for pair in zip(groups.counts, sizes, strict=True)], device)
    else:
        count = torch.minimum(from_host(groups.counts, device), alive.sum(1))
    selection = select(method, tokens, count)
    keep = _drop(hidden.shape[:2], at, alive & ~selection.keep)
    merge = None if selection.target is None else Merge(at, alive, selection.keep, selection)
    return Choice(keep, merge, None if method.bias is None else _token_sizes(keep, at, alive, selection))


def select(method: Method, tokens: VisualTokens, count: Tensor, checked: bool = True) -> Selection:
    """The one call of a method, whoever asks: a selection of valid tokens with exact counts.

    Args:
        method: bound to the model.
        tokens: B groups.
        count: (B,) long, how many of each to keep.
        checked: whether counts are checked, for which the host waits for the device.

    Raises:
        MethodError: where the method does not keep what it was asked for.
    """
    selection = method.select(tokens, count)
    _check_form(method, selection, tokens.valid.shape)
    selection = replace(selection, keep=selection.keep & tokens.valid)
    if checked and not torch.equal(found := selection.keep.sum(1), count):
        raise MethodError(f"{method.name} kept {found.tolist()} tokens where {count.tolist()} were asked for.")
    if checked and selection.target is not None and selection.weight is not None:
        _check_merges(method, selection.keep, selection.target, selection.weight)
    return selection


def _check_form(method: Method, selection: object, shape: torch.Size) -> None:
    """Raise MethodError unless a method gave a Selection of tensors as it must be; nothing waits for the device."""
    if not isinstance(selection, Selection):
        raise MethodError(f"{method.name}: select gave a {type(selection).__name__}; it must give a foveate.Selection.")
    parts = {"keep": selection.keep, "target": selection.target, "weight": selection.weight}
    for name, wanted in (("keep", "bool"), ("target", "long"), ("weight", "float")):
        part = parts[name]
        if part is None and name != "keep":
            continue
        if not isinstance(part, Tensor) or part.shape != shape or _kind(part.dtype) != wanted:
            found = f"{tuple(part.shape)} of {part.dtype}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise MethodError(
                f"{method.name}: the {name} that select gave is {found}; it must be {tuple(shape)}, {wanted}."
            )
    own = type(selection).merged is not Selection.merged  # such as a mixture, which needs no weights
    if (selection.target is None) != (selection.weight is None) and not own:
        raise MethodError(f"{method.name}: select gave a target without a weight, or the reverse; give both, or none.")


def _kind(dtype: torch.dtype) -> str:
    return "float" if dtype.is_floating_point else {torch.bool: "bool", torch.long: "long"}.get(dtype, str(dtype))


def _check_merges(method: Method, keep: Tensor, target: Tensor, weight: Tensor) -> None:
    """Raise MethodError where tokens flow elsewhere than into kept ones, or by a weight that is not a number."""
    flows, last = target >= 0, target.shape[1] - 1
    right = (target <= last) & keep.gather(1, target.clamp(0, last)) & weight.isfinite()
    if not bool((right | ~flows).all()):
        raise MethodError(
            f"{method.name} merges tokens into others than kept ones, or by weights that are not finite; give -1 as "
            "the target of a token that flows nowhere."
        )


def _gather_cue(groups: TokenGroups, rows: Tensor, read: ReadCue, cue: Cue) -> Tensor:
    """A cue as `VisualTokens` wants it: (P, ...), where `rows` (P,) is the prompt of each group."""
    if not isinstance(read, Tensor):
        return groups.pad([of_span.to(rows.device) for of_span in read])
    read = read.to(rows.device)
    return read[rows] if cue.of_text else read.expand(len(rows), *read.shape)


def _text_masks(groups: TokenGroups, rows: Tensor, text: PromptText) -> dict[str, Tensor]:
    """For each group which entries of its prompt's text are real, and which follow its images."""
    last = torch.stack([group[-1].index[-1].to(text.index.device) for group in groups.spans])
    valid = text.valid[rows]
    return {"text_valid": valid, "text_follows": (text.index[rows] > last[:, None]) & valid}


def _drop(shape: Sequence[int], at: tuple[Tensor, Tensor], dropped: Tensor) -> Tensor:
    """(B, W) bool of that shape, true but at the places `at` (P, N) of what is dropped (P, N)."""
    batch, width = shape
    # What stays goes to a place that is cut off: places picked by a mask would make the host wait for the device.
    places = torch.where(dropped, at[0] * width + at[1], batch * width)
    keep = torch.ones(batch * width + 1, dtype=torch.bool, device=dropped.device)
    return keep.index_fill_(0, places.flatten(), False)[:-1].view(batch, width)


def _token_sizes(keep: Tensor, at: tuple[Tensor, Tensor], alive: Tensor, selection: Selection) -> Tensor:
    """(B, W, 2): see `Choice`."""
    sizes, kept = torch.ones(*keep.shape, 2, dtype=torch.float32, device=keep.device), selection.keep
    mean = (alive.sum(1).float() / kept.sum(1).clamp_min(1).float())[:, None].expand(alive.shape)
    merged = torch.ones_like(mean) if selection.target is None else group_size(selection.target)
    sizes[at[0][kept], at[1][kept]] = torch.stack([mean, merged.float()], -1)[kept]
    return sizes


def _count_by_content(method: Method, tokens: VisualTokens, groups: TokenGroups) -> Tensor:
    """How many tokens of each group to keep by what it shows, at least as many as must be left: (P,) long."""
    budget = groups.auto or Budget(AUTO)
    own = method.counts_by_content
    least = [budget.least(size, 0.0 if own else FLOOR) for size in groups.sizes]
    similarity = budget.similarity or SIMILARITY
    counts = method.counts(tokens) if own else count_distinct(tokens.features, tokens.valid, similarity)
    whole = isinstance(counts, Tensor) and not counts.is_floating_point() and counts.dtype != torch.bool
    if counts is None or not whole or counts.shape != tokens.features.shape[:1]:
        raise MethodError(
            f"{method.name} must give one whole number for each of {len(tokens.grids)} pools with keep='auto', but "
            f"gave {counts}; give keep a fraction such as 0.25 instead."
        )
    counts = counts.to(tokens.features.device, torch.long).clamp_min(0 if method.may_drop_all else 1)
    return counts.maximum(from_host(least, counts.device))
