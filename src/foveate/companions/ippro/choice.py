"""Which structures go: the lowest of all, or of each layer, until a share of the FLOPs is gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...errors import MethodError, near_miss
from ...models import adapter_of
from ...runtime.cost import CostModel
from .scores import Criterion, Loss, Scores, magnitude_scores, measure, projective_scores, taylor_scores
from .structures import Kind, Place, Structures, find_structures, shrink

Within = Literal["model", "layer"]


@dataclass(frozen=True)
class Removal:
    """What was taken out.

    Attributes:
        kept: by name of the structures, the indices that stayed.
        flops_before: of one prefill of the prompt; of the language model, and of the encoder where that was pruned.
        flops_after: the same, of the smaller model.
    """

    kept: dict[str, Tensor]
    flops_before: float
    flops_after: float

    @property
    def share(self) -> float:
        """The share of the FLOPs that is gone."""
        return 1 - self.flops_after / self.flops_before


def remove_structures(
    model: nn.Module,
    flops: float,
    inputs: Mapping[str, Any],
    batches: Iterable[Any] = (),
    loss: Loss | None = None,
    criterion: Criterion = "projective",
    kinds: Sequence[Kind] = ("heads", "neurons"),
    within: Within = "model",
    relative_step: float = 1e-2,
) -> Removal:
    """Score structures and take the lowest out, in place and at once.

    Args:
        model: of a family that foveate knows; not while `foveate.prune` is attached to it.
        flops: the share to take out, above 0 and below 1; met from below, to one structure.
        inputs: an example prompt, whose FLOPs are counted.
        batches: calibration data, see `measure`; not needed for ``"magnitude"``.
        loss: see `measure`.
        criterion: ``"projective"``, ``"magnitude"`` or ``"taylor"``.
        kinds: see `find_structures`.
        within: ``"model"``: the lowest of all; ``"layer"``: each layer gives the same share.
        relative_step: see `projective_scores`.

    Raises:
        FoveateError: for what cannot be; the model is unchanged then.

    Examples:
        >>> remove_structures(model, 0.2, inputs, batches).share
        0.1998
    """
    structures = find_structures(model, kinds)
    if criterion not in get_args(Criterion):
        raise MethodError(f"unknown criterion {criterion!r}{near_miss(str(criterion), get_args(Criterion))}")
    _check(flops, within, structures)
    if criterion == "magnitude":
        scores = magnitude_scores(structures)
    else:
        measured = measure(model, structures, batches, loss)
        scores = taylor_scores(measured) if criterion == "taylor" else projective_scores(measured, relative_step)
    kept = choose(model, structures, scores, flops, inputs, within)
    encoder = "encoder_neurons" in kinds
    before = _flops(model, inputs, encoder)
    shrink(model, kept)
    return Removal(kept, before, _flops(model, inputs, encoder))


def choose(
    model: nn.Module,
    structures: Sequence[Structures],
    scores: Scores,
    flops: float,
    inputs: Mapping[str, Any],
    within: Within = "model",
) -> dict[str, Tensor]:
    """Which structures stay, by name, when the lowest scores go until `flops` of the FLOPs are gone.

    A structure that would take out too much is passed over. One of each kind stays in each layer. Arguments as those of
    `remove_structures`; `scores` hold (count,) for each of the structures.

    Raises:
        MethodError: when the structures do not make up so many FLOPs, or for scores that are not numbers.
    """
    _check(flops, within, structures)
    for one in structures:
        if one.name not in scores or scores[one.name].shape != (one.count,) or scores[one.name].isnan().any():
            raise MethodError(f"the scores of {one.name} must be {one.count} numbers.")
    encoder = any(one.kind == "encoder_neurons" for one in structures)
    ledger = _Ledger(model, structures, inputs, encoder)
    target = flops * _flops(model, inputs, encoder)
    if within == "model":
        ledger.remove(structures, scores, target)
    else:
        of_layer: dict[tuple[bool, int | None], list[Structures]] = {}
        for one in structures:
            of_layer.setdefault((one.kind == "encoder_neurons", one.layer), []).append(one)
        parts = ledger.layer_flops(encoder)
        for key, own in of_layer.items():
            ledger.remove(own, scores, target * parts[key] / sum(parts.values()))
    return {one.name: torch.tensor(sorted(ledger.left[one.name])) for one in structures}


class _Ledger:
    """What is left, and what the next structure would save."""

    def __init__(
        self, model: nn.Module, structures: Sequence[Structures], inputs: Mapping[str, Any], encoder: bool
    ) -> None:
        self._adapter = adapter_of(model)
        self._grids = [grid for grids in self._adapter.grids(inputs).values() for grid in grids]
        self._length, self._cost = int(inputs["input_ids"].shape[1]), CostModel(self._adapter)
        visual = sum(map(len, self._grids))
        self._tokens: dict[Place, int] = {
            "layers": self._length,
            "logits": 1,
            "embeddings": 0,
            "encoder": sum(map(self._adapter.patches, self._grids)),
            "projector": visual if encoder else 0,
        }
        self._sizes = {
            (id(member.module), dim): int(member.module.weight.shape[dim])
            for one in structures
            for member in one.members
            for dim in (0, 1)
        }
        self._per = {one.name: [one.per(member) for member in one.members] for one in structures}
        self.left = {one.name: set(range(one.count)) for one in structures}

    def saving(self, one: Structures) -> float:
        """FLOPs that one more structure takes out."""
        total = 0.0
        for member, per in zip(one.members, self._per[one.name], strict=True):
            total += 2.0 * self._tokens[member.place] * per * self._sizes[id(member.module), 1 - member.dim]
        if one.kind == "heads":
            total += 4.0 * self._per[one.name][0] * self._length**2
        return total

    def layer_flops(self, encoder: bool) -> dict[tuple[bool, int | None], float]:
        """Of each layer, by whether it is of the encoder, and its number."""
        through = [self._cost.flops_through(layer, [self._length]) for layer in range(len(self._adapter.text.layers))]
        parts: dict[tuple[bool, int | None], float] = {
            (False, layer): here - before
            for layer, (before, here) in enumerate(zip([0.0, *through], through, strict=False))
        }
        if encoder:
            blocks, whole = len(self._adapter.vision_layers()), self._cost.vision_flops(self._grids)
            parts.update({(True, block): whole / blocks for block in range(blocks)})
        return parts

    def remove(self, structures: Sequence[Structures], scores: Scores, target: float) -> None:
        """Take the lowest of these out, until `target` FLOPs are gone."""
        values = torch.cat([scores[one.name].float().cpu() for one in structures])
        places = [(one, index) for one in structures for index in range(one.count)]
        gone, largest = 0.0, max(map(self.saving, structures))
        for place in values.argsort(stable=True).tolist():
            one, index = places[place]
            saving = self.saving(one)
            if gone + saving > target or len(self.left[one.name]) == 1:
                continue
            gone += saving
            self.left[one.name].discard(index)
            for member, per in zip(one.members, self._per[one.name], strict=True):
                self._sizes[id(member.module), member.dim] -= per
        if gone < target - largest:
            where = "of the model" if len({one.layer for one in structures}) > 1 else f"of layer {structures[0].layer}"
            raise MethodError(
                f"the structures {where} make up {gone:.3g} FLOPs, and {target:.3g} are to go; "
                "ask for a smaller share, or name more kinds."
            )


def _check(flops: float, within: Within, structures: Sequence[Structures]) -> None:
    if isinstance(flops, bool) or not 0 < flops < 1:
        raise MethodError(f"flops={flops!r} must lie between 0 and 1, such as 0.2 for a fifth to be taken out.")
    if within not in get_args(Within):
        raise MethodError(f"unknown within={within!r}{near_miss(str(within), get_args(Within))}")
    if within == "layer" and any(one.layer is None for one in structures):
        raise MethodError("channels run through all layers; use within='model', or leave them out of the kinds.")


def _flops(model: nn.Module, inputs: Mapping[str, Any], encoder: bool) -> float:
    adapter = adapter_of(model)
    cost, length = CostModel(adapter), int(inputs["input_ids"].shape[1])
    total = cost.text_flops([[length]] * len(adapter.text.layers))
    if encoder:
        total += cost.vision_flops([grid for grids in adapter.grids(inputs).values() for grid in grids])
    return total
