"""Which layers to map: those whose heads find the best matches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ModelError
from .checks import decoder_of
from .mapping import map_attention
from .similarity import Measure

_FOREVER = 2**62


@dataclass(frozen=True)
class RankedLayer:
    """A layer of the large model and how well its heads are matched.

    Args:
        layer: its index.
        similarity: of its heads' attention to that of their best matches, mean over heads and prompts.
    """

    layer: int
    similarity: float


@torch.no_grad()
def rank_layers(
    large: nn.Module, small: nn.Module, prompts: Iterable[Mapping[str, Any]], *, measure: Measure = "cosine"
) -> list[RankedLayer]:
    """All layers of the large model, those that the small one matches best first.

    Args:
        large: see `map_attention`.
        small: likewise.
        prompts: inputs of the models, one mapping a batch; they are read whole, so a thousand tokens are enough.
        measure: see `map_attention`.

    Raises:
        ModelError: without prompts, and as `map_attention` does.
    """
    count = len(decoder_of(large).layers)
    totals, rows = torch.zeros(count, dtype=torch.float64), 0
    with map_attention(large, small, range(count), entry=1, longest=_FOREVER, measure=measure) as mapping:
        for prompt in prompts:  # each is matched on all that it has
            large(**prompt)
            best = mapping.report().similarity
            totals += torch.stack([best[layer].mean(1).sum().cpu() for layer in range(count)])
            rows += len(best[0])
    if not rows:
        raise ModelError("layers are ranked by prompts, and there are none; give at least one.")
    ranked = [RankedLayer(layer, total) for layer, total in enumerate((totals / rows).tolist())]
    return sorted(ranked, key=lambda one: -one.similarity)


def choose_layers(
    large: nn.Module,
    small: nn.Module,
    prompts: Iterable[Mapping[str, Any]],
    share: float,
    *,
    measure: Measure = "cosine",
    untouched: float = 0.2,
) -> tuple[int, ...]:
    """The layers to map: of those that may be, the best matched ones, at most `share` of all layers.

    The paper has lists for its models. They leave out the first fifth, in which mapping costs most; so does this.

    Args:
        large: see `map_attention`.
        small: likewise.
        prompts: see `rank_layers`.
        share: of all layers of the large model, rounded down to whole layers.
        measure: see `map_attention`.
        untouched: the share of layers, from the first on, that are never mapped, rounded up.

    Raises:
        ModelError: for a share of more layers than may be mapped, and as `rank_layers` does.
    """
    count = len(decoder_of(large).layers)
    first = math.ceil(untouched * count - 1e-9)
    wanted = math.floor(share * count + 1e-9)
    if not 0 <= wanted <= count - first:
        raise ModelError(
            f"share={share} asks for {wanted} of {count} layers, and the first {first} are never mapped; give a share "
            f"of 0 to {(count - first) / count:.2f}."
        )
    if not wanted:
        return ()
    ranked = [one.layer for one in rank_layers(large, small, prompts, measure=measure) if one.layer >= first]
    return tuple(sorted(ranked[:wanted]))
