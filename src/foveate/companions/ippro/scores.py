"""How much structures matter: by projective offsets, and by magnitude and by Taylor expansion beside them.

An offset ``D`` is added to a filter ``F``, at first ``D = ||F||``, so that ``[F : D]`` has the same angle to the zero
filter ``[0 : 1]`` for every filter, however large. It enters the model behind the filter, as
``psi(x) = sigma(x) + (D - stopgrad(||F||)) x``, which changes nothing at first and has the derivative ``x``. The score
is the tangent of the angle after one step of gradient descent::

    || F - lam g_F ||  /  | ||F|| - lam g_D |

so 1 at the start, and low for filters that move towards zero. Structures of several filters add the squares of the
numerators and of the denominators before the ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import MethodError
from .structures import Member, Structures

Criterion = Literal["projective", "magnitude", "taylor"]
Loss = Callable[[Any, Any], Tensor]
Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """A member: filters and their gradients, (structures, f, m); gradients of their offsets, (structures, f)."""

    filters: Tensor
    gradients: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Measurement:
    """What `measure` found.

    Attributes:
        parts: by name of the structures, those of each scored member.
        taylor: by name of the structures, (count,): mean over batches of the squared first-order change of the loss
            when a structure gives nothing.
        batches: how many there were.
    """

    parts: dict[str, list[Parts]]
    taylor: dict[str, Tensor]
    batches: int


def projective_score(filters: Tensor, gradients: Tensor, offsets: Tensor, step: float | Tensor) -> Tensor:
    """Tangent of the angle of each structure after one step.

    Args:
        filters: (..., f, m), the filters of structures.
        gradients: (..., f, m), of the loss by them.
        offsets: (..., f), of the loss by their offsets.
        step: lam.

    Returns:
        (...,), 1 where nothing moves; 1 for filters that are zero and have no gradient.

    Examples:
        >>> projective_score(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), torch.tensor([0.0]), 0.1)
        tensor(1.)
    """
    return _tangent(*_squares(filters, gradients, offsets, step))


def measure(
    model: nn.Module, structures: Sequence[Structures], batches: Iterable[Any], loss: Loss | None = None
) -> Measurement:
    """Gradients of the loss by filters and by their offsets, summed over batches.

    Args:
        model: left as it was, in its mode; use eval mode.
        structures: those of `find_structures`.
        batches: model inputs with ``labels``, or whatever `loss` takes.
        loss: of a model and a batch, () with a gradient; the model's own by default. What it does not depend on, such
            as blocks of an encoder behind the one whose features are used, has gradients of zero.

    Raises:
        MethodError: without a batch, or for a loss without a gradient.
    """
    loss = loss or (lambda model, batch: model(**batch).loss)
    members = [(one, member) for one in structures for member in one.members if member.scored]
    parameters = list({id(p): p for _, member in members for p in member.parameters()}.values())
    before = [parameter.requires_grad for parameter in parameters]
    sums, count = [torch.zeros_like(one, dtype=torch.float32) for one in parameters], 0
    taylor: dict[str, Any] = {}
    position = {id(parameter): index for index, parameter in enumerate(parameters)}
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with ExitStack() as stack:
            added = {id(member): _inject(stack, one, member) for one, member in members if member.activation}
            offset_sums = {key: torch.zeros_like(value) for key, value in added.items()}
            for batch in batches:
                wanted = [*parameters, *added.values()]
                with torch.enable_grad():
                    value = loss(model, batch)
                    if not value.requires_grad:
                        raise MethodError(
                            "the loss has no gradient; compute it from the model's output, with gradients."
                        )
                    found = torch.autograd.grad(value, wanted, allow_unused=True)
                count += 1
                gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]
                own = [one.detach().float() for one in gradients[: len(parameters)]]
                for total, gradient in zip(sums, own, strict=True):
                    total += gradient
                for key, gradient in zip(added, gradients[len(parameters) :], strict=True):
                    offset_sums[key] += gradient
                for one in structures:
                    change = _change(one, own, position).square()
                    taylor[one.name] = taylor.get(one.name, 0) + change
    finally:
        for parameter, needed in zip(parameters, before, strict=True):
            parameter.requires_grad_(needed)
    if not count:
        raise MethodError("no batches to measure with; give at least one.")
    parts: dict[str, list[Parts]] = {one.name: [] for one in structures}
    for one, member in members:
        filters = member.filters(one.count)
        summed = member.filters_of([sums[position[id(p)]] for p in member.parameters()], one.count)
        known = offset_sums.get(id(member))
        # Without an activation, psi(x) = x + (D - ||F||) x, and the derivative by D is that by F along F.
        offsets = (filters * summed).sum(-1) if known is None else known.reshape(one.count, -1)
        parts[one.name].append(Parts(filters, summed, offsets))
    return Measurement(parts, {name: total / count for name, total in taylor.items()}, count)


def projective_scores(measured: Measurement, relative_step: float = 1e-2) -> Scores:
    """Scores of all structures by name, (count,) each; low ones are pruned.

    Args:
        measured: by `measure`.
        relative_step: sets lam such that the median filter moves by this share of its norm. The paper's lam could not
            be read.
    """
    if not relative_step > 0:
        raise MethodError(f"relative_step={relative_step} must be above 0, such as 0.01.")
    every = [part for parts in measured.parts.values() for part in parts]
    moves = torch.cat([(one.gradients.norm(dim=-1) / one.filters.norm(dim=-1)).flatten() for one in every])
    moves = moves[moves.isfinite()]
    median = moves.median() if len(moves) else torch.tensor(0.0)
    step = relative_step / median if median > 0 else torch.tensor(0.0)
    scores: Scores = {}
    for name, parts in measured.parts.items():
        pairs = [_squares(one.filters, one.gradients, one.offsets, step) for one in parts]
        scores[name] = _tangent(*(torch.stack(each).sum(0) for each in zip(*pairs, strict=True)))
    return scores


def magnitude_scores(structures: Sequence[Structures]) -> Scores:
    """Root mean square of each structure's weights, so that large structures and small ones compare."""
    scores: Scores = {}
    for one in structures:
        squares, numbers = torch.zeros(one.count), 0
        for member in one.members:
            if member.scored:
                filters = member.filters(one.count).cpu()
                squares += filters.square().sum((1, 2))
                numbers += filters[0].numel()
        scores[one.name] = (squares / numbers).sqrt()
    return scores


def taylor_scores(measured: Measurement) -> Scores:
    """Molchanov et al. (2019): squared first-order change of the loss without a structure, mean over batches."""
    return dict(measured.taylor)


def _squares(filters: Tensor, gradients: Tensor, offsets: Tensor, step: float | Tensor) -> tuple[Tensor, Tensor]:
    above = (filters - step * gradients).square().sum((-2, -1))
    below = (filters.norm(dim=-1) - step * offsets).square().sum(-1)
    return above, below


def _tangent(above: Tensor, below: Tensor) -> Tensor:
    """The root of the ratio of two squares; 1 where both are 0."""
    return torch.where((above == 0) & (below == 0), 1.0, (above / below).sqrt())


def _inject(stack: ExitStack, one: Structures, member: Member) -> Tensor:
    """Add offsets behind a member's activation, which change nothing; returns them, (rows,) with a gradient."""
    weight = member.filters(one.count)
    norms = weight.norm(dim=-1).flatten()
    offsets = norms.clone().requires_grad_(True)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + ((offsets - norms) * args[0]).to(output.dtype)

    assert member.activation is not None
    stack.callback(member.activation.register_forward_hook(hook).remove)
    return offsets


def _change(one: Structures, gradients: list[Tensor], position: dict[int, int]) -> Tensor:
    """First-order change of the loss when each structure gives nothing, (count,)."""
    total = torch.zeros(one.count)
    for member in one.members:
        if member.gives:
            moved = member.filters_of([gradients[position[id(p)]] for p in member.parameters()], one.count)
            total += (member.filters(one.count) * moved).sum((1, 2)).cpu()
    return total
