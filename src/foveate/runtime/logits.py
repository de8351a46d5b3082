"""Logits that a caller asks for by place, of a sequence that pruning shortens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import RuntimeStateError
from .state import ForwardState

_FIX = "ask for tokens of the text behind the last image, or for all logits (logits_to_keep=0)"


def check_logits_to_keep(state: ForwardState, asked: Any) -> None:
    """Raise RuntimeStateError for requested logits that pruning may drop or separate.

    Args:
        state: of the forward, before pruning.
        asked: the last so many tokens, their places (k,) or (B, k) among the L, or a mask (B, L); None or 0 for all.
    """
    if asked is None:
        return
    if not isinstance(asked, (int, Tensor)):
        raise RuntimeStateError(f"logits_to_keep is a number or a tensor, not {type(asked).__name__}; {_FIX}.")
    if not isinstance(asked, Tensor) and not asked:
        return
    wanted = torch.zeros_like(state.given)
    if not isinstance(asked, Tensor):
        wanted[:, -int(asked) :] = True
    elif asked.dtype == torch.bool and asked.shape == wanted.shape:
        wanted = asked.to(wanted.device)
    elif asked.ndim in (1, 2) and not asked.dtype.is_floating_point and asked.dtype != torch.bool:
        if bool((asked >= state.length).any()) or bool((asked < -state.length).any()):
            raise RuntimeStateError(f"logits_to_keep asks for places beyond the {state.length} tokens; {_FIX}.")
        places = asked.to(wanted.device) % state.length
        wanted.scatter_(1, places.expand(len(wanted), -1) if asked.ndim == 1 else places, True)
    else:
        raise RuntimeStateError(
            f"logits_to_keep is a number, places (k,) or (batch, k), or a bool mask (batch, length), not {asked.dtype} "
            f"{tuple(asked.shape)}; {_FIX}."
        )
    for span in state.spans:
        if bool(wanted[span.row, span.index.to(wanted.device)].any()):
            raise RuntimeStateError(f"logits_to_keep asks for logits of visual tokens, which may be dropped; {_FIX}.")
    some, padding = (wanted & state.given).any(1), (wanted & ~state.given).any(1)
    if not isinstance(asked, Tensor) and bool((some & padding & ~state.given[:, -1]).any()):
        raise RuntimeStateError(
            f"logits_to_keep={asked} takes padding on the right for tokens, which pruning moves to the left; pad the "
            "prompts on the left, or ask for all logits (logits_to_keep=0)."
        )


def place_logits_to_keep(state: ForwardState, layers: int, asked: Tensor) -> None:
    """Replace, in place, the indices of requested tokens among the L by their indices among those that are kept.

    Raises:
        RuntimeStateError: where tokens that are asked for by one place for all prompts have gone to different places.
    """
    place = state.places(layers)
    if place is None:
        return
    where = place.to(asked.device)
    if asked.dtype == torch.bool:
        last = state.inside[max(state.inside)] if state.inside else state.before
        width = state.length if last is None else last.index.shape[1]
        mask = torch.zeros(len(where), width, dtype=torch.bool, device=asked.device)
        row, column = (asked & (where >= 0)).nonzero(as_tuple=True)
        mask[row, where[row, column]] = True
        asked.set_(mask)  # type: ignore[call-overload]  # the caller's model slices by this very tensor
        return
    if asked.ndim == 2:
        asked.copy_(where.gather(1, asked % state.length).clamp_min(0))
        return
    wanted = asked % state.length
    found, real = where[:, wanted], state.given.to(asked.device)[:, wanted]
    first = torch.where(real, found, -1).amax(0)
    if bool((real & (found != first)).any()) or bool((first < 0).any()):
        raise RuntimeStateError(
            f"logits_to_keep asks for tokens that pruning moves to different places in each prompt; {_FIX}."
        )
    asked.copy_(first)


def keep_logits(output: Any, length: int, wanted: int | Tensor) -> None:
    """Keep the tokens whose logits are asked for, where the language model is told of them.

    The model around it then does so only where it gets as many tokens back as it gave; pruned, these are fewer.

    Args:
        output: of the language model.
        length: how many tokens it was given before pruning.
        wanted: how many of the last, 0 for all, or their places in what is left: (n,) or (B, n) long, or
            a mask (B, W).
    """
    hidden: Tensor = output.last_hidden_state
    if hidden.shape[1] == length or (isinstance(wanted, int) and (not wanted or hidden.shape[1] <= wanted)):
        return
    if isinstance(wanted, int):
        output.last_hidden_state = hidden[:, -wanted:]
    elif wanted.dtype == torch.bool:
        output.last_hidden_state = hidden[wanted.to(hidden.device)]
    else:
        places = wanted.to(hidden.device).expand(len(hidden), -1) if wanted.ndim == 1 else wanted.to(hidden.device)
        output.last_hidden_state = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
