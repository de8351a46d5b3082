"""The contract of a method, as one function that packages of methods call in their tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import MethodError
from ...tokens import Cue, Grid, Kind, Selection, VisualTokens
from .base import Method

Groups = tuple[tuple[Grid, ...], ...]
IMAGES: Groups = ((Grid(4, 5),), (Grid(2, 3), Grid(3, 2, 2)), (Grid(1, 7),))
CLIPS: Groups = ((Grid(2, 2, 5),), (Grid(1, 3, 2), Grid(1, 2, 6)), (Grid(1, 1, 7),))
_TEXT = ((True, True, True, True), (False, True, True, True), (True, False, False, False))
_FOLLOWS = ((False, True, True, True), (False, False, True, True), (False, False, False, False))


def check_contract(method: Method, *, groups: Groups = IMAGES, width: int = 8) -> None:
    """Run a method on a small random batch, and raise at the first thing that it owes and does not give.

    Examples:
        >>> foveate.methods.toolkit.check_contract(foveate.get_method("divprune"))

    It must keep exactly the asked number of tokens in each row, never padding and never a token that an earlier stage
    dropped; keep everything, unchanged, where everything is asked for; choose the same again, alone as in a batch,
    whatever padding holds, whatever the default dtype is; take features in 16 bits and give merged ones back so; merge
    into kept tokens only; leave the counts as they are given; and read no cue that it does not declare. Where it
    counts by content, each count must be of that group alone and within its size.

    Args:
        method: bound, if it needs to be; that of a stage inside the LLM is given hidden states like any other.
        groups: the images and clips of three groups, for methods that do not take all; the first is the largest, and
            the second has at least 6 tokens, the third 3.
        width: of the features, for methods that have learned for one.

    Raises:
        MethodError: with the clause that is broken.
    """
    tokens = _example(method, groups, width)
    asked = torch.tensor([6, 5, 3])
    chosen = _check_counts(method, tokens, asked)
    _check_everything(method, tokens)
    _check_merging(method, chosen, tokens)
    for what, again in _repeats(method, tokens, asked):
        if not torch.equal(again, chosen.keep):
            raise MethodError(f"{method.name} does not choose the same {what}.")
    _check_rows_alone(method, tokens, asked, chosen)
    _check_half(method, tokens, asked)
    _check_dropped(method, tokens)
    _check_content(method, tokens)


def _example(method: Method, groups: Groups, width: int) -> VisualTokens:
    """A padded batch with the cues that the method declares, at random."""
    random = torch.Generator().manual_seed(0)
    largest = max(sum(map(len, group)) for group in groups)
    readings = max(len(method.encoder_readings), len(method.llm_readings), 1)
    sizes = {"N": largest, "d": width, "D": width, "M": 4, "e": 5, "R": readings, "E": 6, "H": 2, "L": 2}
    sizes |= {"K": 2, "c": 3}
    follows = torch.tensor(_FOLLOWS)

    def numbers(cue: Cue) -> Tensor:
        made = torch.rand((len(groups), *cue.shape(sizes)), generator=random, dtype=torch.float32)
        if cue.kind is Kind.MASK:
            return made < 0.2
        return made - 0.5 if cue.kind is Kind.VECTOR else made

    features = torch.rand(len(groups), largest, width, generator=random, dtype=torch.float32)
    cues = {cue: numbers(cue) for cue in sorted(method.needs, key=lambda cue: cue.name)}
    if Cue.LLM_TEXT_ATTENTION in cues:  # text before an image does not see it
        cues[Cue.LLM_TEXT_ATTENTION] = cues[Cue.LLM_TEXT_ATTENTION] * follows[:, None, None]
    if Cue.LLM_KEYS in cues:  # comes with it
        cues[Cue.TEXT_KEYS] = numbers(Cue.TEXT_KEYS)
    return VisualTokens(features, groups, cues, text_valid=torch.tensor(_TEXT), text_follows=follows)


def _check_counts(method: Method, tokens: VisualTokens, asked: Tensor) -> Selection:
    wanted = asked.tolist()
    chosen = method.select(tokens, asked)
    if asked.tolist() != wanted:
        raise MethodError(f"{method.name} writes to the counts that it is given; change a copy.")
    keep = chosen.keep
    if keep.dtype != torch.bool or keep.shape != tokens.valid.shape:
        raise MethodError(f"{method.name} gives a mask {tuple(keep.shape)} of {keep.dtype}; it must be (B, N) bool.")
    if keep.sum(1).tolist() != asked.tolist():
        raise MethodError(f"{method.name} keeps {keep.sum(1).tolist()} tokens where {asked.tolist()} were asked for.")
    if (keep & ~tokens.valid).any():
        raise MethodError(f"{method.name} keeps padding; choose only where tokens.valid is true.")
    return chosen


def _check_everything(method: Method, tokens: VisualTokens) -> None:
    chosen = method.select(tokens, torch.tensor(tokens.sizes))
    merged = chosen.merged(tokens.features)
    same = torch.equal(merged[tokens.valid], tokens.features[tokens.valid])
    if not torch.equal(chosen.keep, tokens.valid) or not same:
        raise MethodError(f"{method.name} does not keep all tokens unchanged where all are asked for.")


def _check_merging(method: Method, chosen: Selection, tokens: VisualTokens) -> None:
    if chosen.target is None:
        return
    flows = chosen.target >= 0
    into_kept = chosen.keep.gather(1, chosen.target.clamp_min(0))[flows].all()
    own = torch.equal(chosen.target[chosen.keep], chosen.keep.nonzero()[:, 1])
    if (flows & ~tokens.valid).any() or not into_kept or not own:
        raise MethodError(
            f"{method.name} merges what it must not: tokens flow into kept ones, kept ones into themselves, padding "
            "nowhere (-1)."
        )


def _repeats(method: Method, tokens: VisualTokens, asked: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What it keeps under circumstances that must not matter, and how they are called."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield (
            "when it is asked again; draw random numbers from a generator with a seed",
            method.select(tokens, asked).keep,
        )
    with _default_dtype(torch.bfloat16):
        keep = method.select(tokens, asked).keep
    yield "under another default dtype; name the dtype of every tensor that you make", keep
    dirty = _fill(tokens, torch.nan)
    yield "when padding holds NaN; look only where tokens.valid is true", method.select(dirty, asked).keep


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _fill(tokens: VisualTokens, value: float) -> VisualTokens:
    """The same tokens, with other numbers on the padding of features and of cues that have a row for each token."""
    padding = ~tokens.valid

    def fill(tensor: Tensor) -> Tensor:
        return torch.where(padding.view(*padding.shape, *[1] * (tensor.ndim - 2)), value, tensor)

    cues = {
        cue: fill(held) if cue.axes[:1] == ("N",) and cue.kind is not Kind.MASK else held
        for cue, held in tokens.cues.items()
    }
    return replace(tokens, features=fill(tokens.features), cues=cues)


def _check_rows_alone(method: Method, tokens: VisualTokens, asked: Tensor, chosen: Selection) -> None:
    merged = chosen.merged(tokens.features)
    for row, size in enumerate(tokens.sizes):
        alone = _row(tokens, row)
        single = method.select(alone, asked[row : row + 1])
        same = torch.equal(single.keep[0], chosen.keep[row, :size])
        if not same or not torch.equal(single.merged(alone.features)[0, single.keep[0]], merged[row, chosen.keep[row]]):
            raise MethodError(f"{method.name} does not choose the same for a group alone and in a padded batch.")


def _row(tokens: VisualTokens, row: int) -> VisualTokens:
    """One group of a batch, without padding."""
    size, words = tokens.sizes[row], tokens.text_valid[row].nonzero()[:, 0]
    cues = {}
    for cue, held in tokens.cues.items():
        part = held[row : row + 1]
        for axis, name in enumerate(cue.axes, 1):
            if name in "NM":
                part = part.index_select(axis, torch.arange(size) if name == "N" else words)
        cues[cue] = part
    follows = tokens.text_follows[row : row + 1, words]
    return VisualTokens(tokens.features[row : row + 1, :size], tokens.grids[row : row + 1], cues, text_follows=follows)


def _check_half(method: Method, tokens: VisualTokens, asked: Tensor) -> None:
    cues = {cue: held.bfloat16() if cue.kind is Kind.VECTOR else held for cue, held in tokens.cues.items()}
    half = replace(tokens, features=tokens.features.bfloat16(), cues=cues)
    chosen = _check_counts(method, half, asked)
    if chosen.merged(half.features).dtype != torch.bfloat16:
        raise MethodError(f"{method.name} does not give features in 16 bits back in 16 bits.")


def _check_dropped(method: Method, tokens: VisualTokens) -> None:
    thinned = replace(tokens, alive=(torch.arange(tokens.features.shape[1]) % 3 > 0).expand(len(tokens.sizes), -1))
    try:
        _check_counts(method, thinned, torch.tensor([4, 3, 2]))
    except MethodError as error:
        if "let it prune first" not in str(error):  # as `check_undropped` refuses them
            raise


def _check_content(method: Method, tokens: VisualTokens) -> None:
    if not method.counts_by_content:
        return
    counts = method.counts(tokens)
    if counts is None:
        return
    alone: Sequence[Tensor | None] = [method.counts(_row(tokens, row)) for row in range(len(tokens.sizes))]
    within = all(0 <= n <= size for n, size in zip(counts.tolist(), tokens.sizes, strict=True))
    single = all(one is not None and one.tolist() == [n] for one, n in zip(alone, counts.tolist(), strict=True))
    if counts.dtype != torch.long or not within or not single:
        raise MethodError(
            f"{method.name} counts {counts.tolist()}: it must be (B,) long, within each group's size, and the same for "
            "a group alone."
        )
