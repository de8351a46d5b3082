"""Selection for all images of a step at once: group, choose, gather; on a GPU nothing waits for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...budget import Budget
from ...devices import first_of_each, from_host
from ...grouping import Span, TokenGroups, select
from ...methods import Method
from ...tokens import Cue, Grid, Selection, VisualTokens
from .faults import Faults, find_usable, zero_non_finite


def groups_of(grids: Sequence[Grid], budget: Budget) -> TokenGroups:
    """The groups of one image or clip: itself, its tiles, or its frames."""
    spans, start = [], 0
    for order, grid in enumerate(grids):
        spans.append(Span(0, "", order, grid, torch.arange(start, start + len(grid), device="cpu")))
        start += len(grid)
    return TokenGroups.of(spans, budget)


@dataclass(frozen=True)
class Question:
    """The text that methods choose by, the same for all images of a call.

    Args:
        embeddings: (M, d) input embeddings of the language model.
        before: for each image, and each of its groups, how many of them stand before its last token.
    """

    embeddings: Tensor
    before: Sequence[Sequence[int]]

    def of(self, images: Sequence[int]) -> Question:
        """The same for some of the images."""
        return Question(self.embeddings, [self.before[image] for image in images])


@dataclass(frozen=True)
class MethodCall:
    """What a method is asked for some images at once.

    Args:
        method: bound to the model.
        features: for each image (n, d'); of the d' columns the first `width` are what the LLM reads.
        groups: of each image.
        cues: for each cue and image (n, ...).
        width: d.
        question: for methods that choose by text.
        alive: for each image (n,) bool, which of its tokens the vision encoder has not left out; None: all.
    """

    method: Method
    features: Sequence[Tensor]
    groups: Sequence[TokenGroups]
    cues: Mapping[Cue, Sequence[Tensor]]
    width: int
    question: Question | None = None
    alive: Sequence[Tensor] | None = None

    def of(self, images: Sequence[int]) -> MethodCall:
        """The same for some of the images."""
        return replace(
            self,
            features=[self.features[image] for image in images],
            groups=[self.groups[image] for image in images],
            cues={cue: [read[image] for image in images] for cue, read in self.cues.items()},
            question=None if self.question is None else self.question.of(images),
            alive=None if self.alive is None else [self.alive[image] for image in images],
        )


@dataclass(frozen=True)
class Shortened:
    """What is kept of an image.

    Args:
        rows: (k, d').
        index: (k,) long, where they were among its n tokens, rising.
        flows: for methods that merge, which token each flows into and by which weight, as in `Selection`: (n,) each.
        repeatable: whether `index` and `flows` are all that made the rows.
    """

    rows: Tensor
    index: Tensor
    flows: tuple[Tensor, Tensor] | None = None
    repeatable: bool = True


def shorten(call: MethodCall, faults: Faults | None = None) -> list[Shortened]:
    """Let the method choose once for all images.

    An image whose numbers cannot be computed with (`find_usable`) keeps the first tokens of each of its groups.

    Args:
        call: of the method.
        faults: where images are counted whose numbers cannot be used.

    Raises:
        MethodError: on a CPU, where the method does not keep what it was asked for. On a GPU the host would have to
            wait to see that; there methods are tried out before (`BoundMethods`), and so many rows are taken anyway.
    """
    features, groups, cues, width = call.features, call.groups, call.cues, call.width
    together = TokenGroups.join(groups)
    embeddings = together.pad([one[:, :width] for one in features])
    device = embeddings.device
    usable = find_usable([[one, *(read[i] for read in cues.values())] for i, one in enumerate(features)])
    if faults is not None:
        faults.count_unusable(usable)
    image_of = [image for image, of_image in enumerate(groups) for _ in of_image.spans]
    row_usable = usable[from_host(image_of, device)]
    padded = {cue: _blank(together.pad(read), row_usable) for cue, read in cues.items()}
    alive = None if call.alive is None else together.pad(call.alive)
    tokens = VisualTokens(_blank(embeddings, row_usable), together.grids, padded, alive=alive)
    if call.question is not None:
        tokens = _with_text(tokens, call.question)
    count = from_host(together.counts, device)
    selection = select(call.method, tokens, count, checked=device.type == "cpu")
    first = tokens.valid & (tokens.valid.cumsum(1) <= count[:, None])
    keep = torch.where(row_usable[:, None], selection.keep, first)
    # Kept tokens first, then others, padding last, each in their order: no count is read back from the device.
    order = torch.argsort(2 * (~keep).int() + (~tokens.valid).int(), dim=1, stable=True)
    selection = _within(selection)
    merged = None if selection.target is None else selection.merged(embeddings)
    repeatable = selection.target is None or type(selection).merged is Selection.merged
    out, row = [], 0
    for image, (of_image, of_group) in enumerate(zip(features, groups, strict=True)):
        rows, places, flows = [], [], []
        for (span,), kept in zip(of_group.spans, of_group.counts, strict=True):
            indices = order[row, :kept]
            place = int(span.index[0]) + indices
            given = of_image[place]
            if merged is not None:
                of_merged = torch.where(usable[image], merged[row, indices], given[:, :width])
                given = torch.cat([of_merged, given[:, width:]], 1)
                flows.append(_flows(selection, row, span, usable[image]))
            rows.append(given)
            places.append(place)
            row += 1
        whole = (torch.cat([to for to, _ in flows]), torch.cat([by for _, by in flows])) if flows else None
        out.append(Shortened(zero_non_finite(torch.cat(rows)), torch.cat(places), whole, repeatable))
    return out


def shorten_safely(call: MethodCall, faults: Faults) -> list[Shortened]:
    """`shorten`, but an image for which the method raises keeps the first tokens of each of its groups.

    What raised for several images is asked again for each alone, so that one does not decide for others.
    """
    try:
        return shorten(call, faults)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # not of an image, and ranks of a model in parallel must not differ in what they keep
    except Exception as error:
        if len(call.features) > 1:
            return [one for image in range(len(call.features)) for one in shorten_safely(call.of([image]), faults)]
        faults.count_failed(call.method.name, 1, error)
        return [first_tokens(call.features[0], call.groups[0], None if call.alive is None else call.alive[0])]


def first_tokens(features: Tensor, groups: TokenGroups, alive: Tensor | None = None) -> Shortened:
    """The first tokens of each group of an image, as many as it must keep, of `features` (n, d').

    Args:
        features: of the image.
        groups: of the image.
        alive: (n,) bool, which of its tokens are there; None: all.
    """
    starts = [(int(span.index[0]), count) for (span,), count in zip(groups.spans, groups.counts, strict=True)]
    if alive is None:
        place = torch.cat([torch.arange(start, start + count, device=features.device) for start, count in starts])
    else:  # those that are there come first, in their order, without a look at how many they are
        sizes = zip(starts, groups.sizes, strict=True)
        parts = [
            start + torch.argsort(~alive[start : start + size], stable=True)[:kept] for (start, kept), size in sizes
        ]
        place = torch.cat(parts)
    return Shortened(zero_non_finite(features[place]), place)


def _blank(values: Tensor, usable: Tensor) -> Tensor:
    """`values` (P, N, ...), which are overwritten, with zeros in rows that are not usable (P,)."""
    return values.masked_fill_(~usable.view(-1, *[1] * (values.ndim - 1)), 0)


def _within(selection: Selection) -> Selection:
    """The same where no target is beyond the row, which a GPU would answer with the end of its process."""
    if selection.target is None:
        return selection
    return replace(selection, target=selection.target.clamp_max(selection.target.shape[1] - 1))


def _flows(selection: Selection, row: int, span: Span, usable: Tensor) -> tuple[Tensor, Tensor]:
    """`Shortened.flows` of one group, into tokens of its image; each into itself where it is not `usable`."""
    start, size = int(span.index[0]), len(span.grid)
    assert selection.target is not None
    target = selection.target[row, :size]
    own = torch.arange(size, device=target.device)
    weight = torch.ones_like(own, dtype=torch.float32) if selection.weight is None else selection.weight[row, :size]
    target = torch.where(usable, target, own)
    return torch.where(target >= 0, target + start, -1), torch.where(usable, weight.float(), 1.0)


def _with_text(tokens: VisualTokens, question: Question) -> VisualTokens:
    text = question.embeddings[None].expand(len(tokens.grids), -1, -1)  # no copies; questions can be long
    places = torch.arange(text.shape[1], device=text.device)
    follows = places[None] >= from_host([one for of_image in question.before for one in of_image], text.device)[:, None]
    return replace(
        tokens,
        cues={**tokens.cues, Cue.TEXT_EMBEDDINGS: text},
        text_valid=first_of_each([text.shape[1]] * len(text), text.shape[1], text.device),
        text_follows=follows,
    )
