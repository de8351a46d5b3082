"""The soft mask: while a scorer learns, no visual token is dropped; each is weighted by the soft top-k.

Pruning shortens the language model's input, through which no gradient reaches a score. Here the same seam, the call of
the language model, lets each visual token through by the soft top-k of its pool's scores; how, see
`training.scorer.gates`. Everything else of the forward is the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...budget import Budget
from ...errors import ModelError
from ...grouping import Span, TokenGroups
from ...models import ModelAdapter, adapter_of
from ...runtime.prompt import locate
from ...selection import topk
from .gates import Gate, apply_gate
from .model import TrainableScorer
from .soft_topk import threshold


@dataclass(frozen=True)
class MaskStatistics:
    """Statistics of the mask of one forward, for each of its B prompts.

    Args:
        constraint: (B,) mean over a prompt's visual tokens of the binary cross-entropy between the soft mask and the
            hard top-k of the same scores, which is taken as given; differentiable.
        agreement: (B,) share of the soft mask that lies on the tokens of the hard top-k; 1 when both are one.
    """

    constraint: Tensor
    agreement: Tensor


class SoftMask:
    """The hooks on one model; made by `soft_mask`."""

    def __init__(self, adapter: ModelAdapter, scorer: TrainableScorer, budget: Budget, gate: Gate) -> None:
        self._adapter, self._scorer, self._budget, self._gate = adapter, scorer, budget, gate
        self._spans: list[Span] = []
        self._latest: MaskStatistics | None = None

    def take(self) -> MaskStatistics:
        """The statistics of the latest forward's mask; each can be taken once."""
        latest, self._latest = self._latest, None
        if latest is None:
            raise ModelError("no visual token went through the language model; every training prompt needs a picture.")
        return latest

    def find_tokens(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the module that merges text and pixels: find the visual tokens."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._spans = (
            [] if ids is None else locate(self._adapter, ids, {k: v for k, v in kwargs.items() if v is not None})
        )

    def apply(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Before the language model: put the soft mask on the visual tokens."""
        if not self._spans:
            return None
        embeds: Tensor = kwargs["inputs_embeds"]
        groups = TokenGroups.of(self._spans, self._budget)
        rows, index = groups.padded_index(embeds.device)
        valid = index >= 0
        at = (rows[:, None].expand_as(index), index.clamp_min(0))
        scores = self._scorer(embeds[at], valid)
        count = torch.tensor(groups.counts, device=embeds.device)
        logits = scores + threshold(scores, count, valid)[:, None]
        hard = topk(scores.detach(), count, valid=valid)
        logs = torch.zeros(embeds.shape[:2], device=embeds.device)
        logs = logs.index_put((at[0][valid], at[1][valid]), nn.functional.logsigmoid(logits)[valid])
        self._latest = _mask_statistics(logits, hard, valid, rows, embeds.shape[0])
        return args, apply_gate(self._gate, self._adapter, kwargs, logs)


@contextmanager
def soft_mask(
    model: nn.Module, scorer: TrainableScorer, budget: Budget, gate: Gate = "attention"
) -> Iterator[SoftMask]:
    """Within it, every forward of `model` with pictures goes through the soft top-k of the scorer's scores.

    Args:
        model: a supported model; it is as before on exit.
        scorer: for features of the language model's width, on the model's device.
        budget: how much of each pool to keep, and what a pool is; not ``"auto"``.
        gate: what the mask acts on; see `training.scorer.gates`.
    """
    adapter = adapter_of(model)
    mask = SoftMask(adapter, scorer, budget, gate)
    handles = [
        adapter.base.register_forward_pre_hook(mask.find_tokens, with_kwargs=True),
        adapter.text.register_forward_pre_hook(mask.apply, with_kwargs=True),
    ]
    try:
        yield mask
    finally:
        for handle in handles:
            handle.remove()


def _mask_statistics(logits: Tensor, hard: Tensor, valid: Tensor, rows: Tensor, batch: int) -> MaskStatistics:
    """Means over the visual tokens of each prompt, which may lie in several pools."""
    target = hard.float()
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    mask = logits.detach().sigmoid().masked_fill(~valid, 0.0)

    def sum_by_prompt(values: Tensor) -> Tensor:
        return values.new_zeros(batch).index_add(0, rows, values.masked_fill(~valid, 0.0).sum(-1))

    return MaskStatistics(
        sum_by_prompt(entropy) / sum_by_prompt(valid.float()).clamp_min(1),
        sum_by_prompt(mask * target) / sum_by_prompt(mask),
    )
