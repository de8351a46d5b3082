"""Attention masks of shortened sequences: read off what the caller gave, or made for a layer's keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import RuntimeStateError
from ..grouping import Span
from .cache import CacheLayout, TokenIndex


@dataclass(frozen=True)
class Window:
    """How far back a layer attends: the last `size` keys, or the keys of the same chunk of `size`."""

    kind: Literal["sliding", "chunk"]
    size: int

    @classmethod
    def of(cls, text_config: Any, layer: int) -> Window | None:
        """That of a layer of a language model; None where it attends to all that came before."""
        kinds = getattr(text_config, "layer_types", None)
        return cls.of_kind(text_config, kinds[layer] if kinds else None)

    @classmethod
    def of_kind(cls, text_config: Any, kind: str | None) -> Window | None:
        """That of a kind of layer, as ``layer_types`` of the configuration names it; None where all are of one kind."""
        sliding = getattr(text_config, "sliding_window", None)
        if getattr(text_config, "use_sliding_window", True) is False:
            sliding = None
        chunk = getattr(text_config, "attention_chunk_size", None)
        if kind is None:
            kind = "sliding_attention" if sliding else "chunked_attention" if chunk else ""
        if "sliding" in kind and sliding:
            return cls("sliding", int(sliding))
        return cls("chunk", int(chunk)) if "chunk" in kind and chunk else None

    def open(self, query: Tensor, key: Tensor, padding: Tensor) -> Tensor:
        """Which keys queries attend to, by their places in the sequence, which broadcast; `padding` (B, 1, 1) leads."""
        if self.kind == "sliding":
            return key > query - self.size
        return (key - padding) // self.size == (query - padding) // self.size


def attends(mask: Tensor) -> Tensor:
    """A mask as bool: where attention is allowed."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def one_mask(mask: Any) -> Any:
    """The mask of full-attention layers, where there is one for each kind of layer."""
    if not isinstance(mask, Mapping):
        return mask
    return mask.get("full_attention", next(iter(mask.values()), None))


def custom_mask(mask: Any, queries: int, keys: int) -> Any:
    """The mask as it is where the caller made it for pairs of tokens (B, H, L, S), or one for each kind of layer.

    Args:
        mask: any.
        queries: L, tokens of this forward.
        keys: S, with those that are cached, before any pruning.

    Raises:
        RuntimeStateError: for one that cannot be shortened.
    """
    if isinstance(mask, Mapping):
        return mask if any([custom_mask(one, queries, keys) is not None for one in mask.values()]) else None
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise RuntimeStateError(
            "an attention mask can be shortened where it is a tensor (batch, length) or (batch, heads, queries, keys), "
            f"not {type(mask).__name__}; give one of these."
        )
    if mask.shape[2] != queries or mask.shape[3] < keys:
        raise RuntimeStateError(
            f"the attention mask {tuple(mask.shape)} must have a row for each of the {queries} tokens given and a "
            f"column for each of the {keys} with those in the cache, before any pruning; give it so."
        )
    return mask


class Unmasked(NamedTuple):
    """What a forward sees in the layers of a kind where no mask says otherwise.

    Args:
        first: the column of its first token in masks of that kind.
        window: how far back these layers attend.
        causal: whether the kernel, handed no mask at all, lets tokens see only earlier ones.
    """

    first: int
    window: Window | None
    causal: bool


def read_bidirectional(mask: Any, given: Tensor, unmasked: Callable[[str | None], Unmasked]) -> Any:
    """Which pairs of a forward's tokens see each other beyond causal attention, by a mask that the model itself made.

    Models that make masks around their language model let the tokens of an image see each other, or those of a whole
    prompt.

    Args:
        mask: (B or 1, H, L, S), or one for each kind of layer; 2-D ones say nothing of pairs.
        given: (B, L) bool, the real tokens of this forward.
        unmasked: by kind of layer, None where all are of one.

    Returns:
        (B or 1, H, L, L) bool, or one for each kind of layer; None where attention is causal, within windows or not.

    Raises:
        RuntimeStateError: for a mask that cannot be read.
    """
    if isinstance(mask, Mapping):
        found = {kind: _read_pairs(one, given, unmasked(kind)) for kind, one in mask.items()}
        return found if any(one is not None for one in found.values()) else None
    return _read_pairs(mask, given, unmasked(None))


def _read_pairs(mask: Any, given: Tensor, unmasked: Unmasked) -> Tensor | None:
    length, first = given.shape[1], unmasked.first
    if (isinstance(mask, Tensor) and mask.ndim == 2) or (mask is None and unmasked.causal):
        return None
    if mask is None:
        pairs = given[:, None, None].expand(-1, 1, length, -1)
    elif isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[2] == length and mask.shape[3] >= first + length:
        pairs = attends(mask[..., first : first + length])
    else:
        raise RuntimeStateError(
            f"the model made an attention mask ({type(mask).__name__}) that cannot be shortened with its images; load "
            "it with attn_implementation='sdpa' or 'eager'."
        )
    key = torch.arange(length, device=pairs.device)
    expected = key <= key[:, None]
    if unmasked.window is not None:
        padding = (~given).long().cumprod(1).sum(1)[:, None, None].to(pairs.device)
        expected = expected & unmasked.window.open(key[:, None], key, padding).view(-1, 1, length, length)
    pairs = pairs & ~expected
    return pairs if bool(pairs.any()) else None


def first_layer_of(text_config: Any, kind: str | None) -> int:
    """The first layer of a kind; where masks are not told apart by kind, the first that attends to all that came."""
    kinds: list[str] = getattr(text_config, "layer_types", None) or []
    kind = "full_attention" if kind is None else kind
    return kinds.index(kind) if kind in kinds else 0


def unmasked_of(text_model: Any, cache: Any, length: int, kind: str | None) -> Unmasked:
    """What `length` tokens see in a language model's layers of a kind, where the model made masks for its cache."""
    layer = first_layer_of(text_model.config, kind)
    first = 0 if cache is None else int(cache.get_query_offset(layer)) - int(cache.get_mask_sizes(length, layer)[1])
    return Unmasked(first, Window.of(text_model.config, layer), is_causal(text_model.layers[layer]))


def is_causal(layer: Any) -> bool:
    """Whether the kernel of a decoder layer, handed no mask at all, lets tokens see only earlier ones."""
    return getattr(getattr(layer, "self_attn", None), "is_causal", True) is not False


def mask_of_kind(masks: Any, kind: str | None) -> Any:
    """The mask of a kind of layer, where there is one for each."""
    return masks.get(kind) if isinstance(masks, Mapping) else masks


def shorten_bidirectional(pairs: Any, kept: TokenIndex) -> Any:
    """What `read_bidirectional` found, of those of the L tokens that are kept: (B, H, W, W)."""
    if isinstance(pairs, Mapping):
        return {kind: shorten_bidirectional(one, kept) for kind, one in pairs.items()}
    if pairs is None:
        return None
    index = kept.index.to(pairs.device)
    pairs = pairs.expand(len(index), *pairs.shape[1:])
    pairs = pairs.gather(2, index[:, None, :, None].expand(-1, pairs.shape[1], -1, pairs.shape[-1]))
    return pairs.gather(3, index[:, None, None].expand(-1, pairs.shape[1], pairs.shape[2], -1))


def key_validity(mask: Any, batch: int, length: int, device: torch.device) -> Tensor:
    """Which of `length` keys are real, (B, length) bool, read off any mask that transformers passes around.

    Of a mask for pairs, those that any query sees.
    """
    mask = one_mask(mask)
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if mask.ndim == 4:
        mask = attends(mask)[:, 0].any(1)
    return mask[:, :length].to(device).bool().expand(batch, -1)


def check_length(mask: Tensor, length: int, past: int, known: bool) -> None:
    """Raise RuntimeStateError for a mask (B, S) that does not cover all tokens.

    Args:
        mask: as the caller gave it.
        length: tokens of this forward.
        past: tokens that are cached.
        known: whether it is known which of these are real; then a mask may leave them out.
    """
    columns = mask.shape[1]
    if columns < past + length and not (known and columns == length):
        raise RuntimeStateError(
            f"the attention mask has {columns} columns for {past + length} tokens, those in the cache included; give "
            "one for each."
        )


def check_last_row(mask: Any, given: Tensor, spans: Sequence[Span], method: str) -> None:
    """Raise RuntimeStateError where the last token of a prompt attends to nothing of an image, by the caller's mask.

    Args:
        mask: for pairs, see `custom_mask`.
        given: (B, L) bool, the real tokens of this forward.
        spans: its images.
        method: that reads what the language model attends to.
    """
    pairs = attends(one_mask(mask))[:, 0].expand(len(given), -1, -1)[..., -given.shape[1] :]
    last = torch.where(given, torch.arange(given.shape[1], device=given.device), -1).amax(1)
    for span in spans:
        if not bool(pairs[span.row, last[span.row], span.index.to(pairs.device)].any()):
            raise RuntimeStateError(
                f"{method} chooses by what the last token of the prompt attends to, but the attention mask hides an "
                "image from it; use a method that prunes before the LLM, or pass prompts as rows of a padded batch."
            )


def is_packed(position_ids: Tensor | None, valid: Tensor, unmasked: bool = False) -> bool:
    """Whether positions start anew within a row: several prompts packed into one.

    Args:
        position_ids: (B or 1, L), or with leading M-RoPE channels (C, B or 1, L).
        valid: (B, L) bool, the real tokens.
        unmasked: whether transformers, without a mask, takes any step but 1 of text positions for another prompt.
    """
    if position_ids is None:
        return False
    valid = valid.to(position_ids.device)
    ids = position_ids[None] if position_ids.ndim == 2 else position_ids
    ids = ids[:1] if len(ids) == 4 else ids  # channel 0 is the text index, which tells by itself
    ids = ids.expand(-1, len(valid), -1)
    if unmasked and len(ids) == 1:
        return bool((ids[0].diff(dim=-1) != 1).any())
    first = valid.long().argmax(1)[None, :, None].expand(len(ids), -1, -1)
    # Within a prompt no token but the first lies at or before it on all axes; time alone may run back behind a clip.
    anew = (ids <= ids.gather(2, first)).all(0) & valid
    return bool((anew.sum(1) > 1).any())


def shorten_custom(mask: Any, kept: TokenIndex, layout: CacheLayout) -> Any:
    """Rows and columns of what is kept, of a mask for pairs (B or 1, H, L, S) or of one for each kind of layer.

    Args:
        mask: bool or additive; S counts what was cached before.
        kept: the survivors of the L queries.
        layout: what the cache holds with them.
    """
    if isinstance(mask, Mapping):
        return {kind: None if one is None else shorten_custom(one, kept, layout) for kind, one in mask.items()}
    row, column = kept.index.to(mask.device), layout.column.to(mask.device)
    mask = mask.expand(column.shape[0], *mask.shape[1:])
    heads = mask.shape[1]
    mask = mask.gather(2, row[:, None, :, None].expand(-1, heads, -1, mask.shape[-1]))
    mask = mask.gather(3, column[:, None, None].expand(-1, heads, mask.shape[2], -1))
    return mask.masked_fill(~layout.valid.to(mask.device)[:, None, None], _masked_value(mask.dtype))


def layer_mask(
    kept: TokenIndex,
    layout: CacheLayout,
    own: Tensor | None,
    window: Window | None,
    keys: tuple[int, int],
    kernel: str,
    dtype: torch.dtype,
    bidirectional: Tensor | None = None,
    causal: bool = True,
) -> Tensor | None:
    """The mask of a layer that runs on a shortened sequence.

    Args:
        kept: the survivors of this forward, already in `layout`.
        layout: what the layer has seen, entries that it let go of included.
        own: the caller's mask for pairs, of the sequence before pruning; None for a causal one.
        window: how far back the layer attends.
        keys: how many keys the layer hands to its kernel, unused room included, and which of the layout's is first.
        kernel: the attention implementation.
        dtype: of additive masks.
        bidirectional: pairs of the survivors that see each other in any case, see `shorten_bidirectional`.
        causal: whether the kernel, without a mask, lets tokens see only earlier ones.
    """
    length, first = keys
    width, physical = kept.index.shape[1], layout.column.shape[1]
    plain = own is None and bidirectional is None and window is None and (causal or width == 1) and kernel != "eager"
    if plain and (length, first) == (physical, 0) and width in (1, physical) and bool(layout.valid.all()):
        return None  # causal attention says it all
    columns = torch.arange(first, first + length, device=layout.valid.device)
    there = torch.nn.functional.pad(layout.valid, (0, max(first + length - physical, 0)))[:, columns]
    if "flash" in kernel:  # knows the order and its window
        return None if bool(there.all()) else there
    query = torch.arange(physical - width, physical, device=columns.device)[:, None]
    padding = (~layout.valid).long().cumprod(1).sum(1)[:, None, None]
    allowed = there[:, None, None]
    soft = None
    if own is None:
        allowed = allowed & (columns <= query)
    else:
        soft = shorten_custom(own, kept, layout).to(there.device)
        room = max(first + length - physical, 0)
        soft = torch.nn.functional.pad(soft, (0, room), value=_masked_value(soft.dtype))[..., columns]
        allowed = allowed & attends(soft)
    if window is not None:
        allowed = allowed & window.open(query, columns, padding).view(-1, 1, width, length)
    if bidirectional is not None:
        sides = physical - width, max(first + length - physical, 0)
        seen = torch.nn.functional.pad(bidirectional.to(there.device), sides)[..., columns]
        allowed = allowed | (seen & there[:, None, None])
    if kernel != "eager" and (soft is None or soft.dtype == torch.bool):
        return allowed
    if soft is None or soft.dtype == torch.bool:
        soft = torch.zeros((), dtype=dtype, device=allowed.device)
    return soft.to(dtype).masked_fill(~allowed, _masked_value(dtype))


def state_mask(kept: TokenIndex) -> Tensor | None:
    """(B, W) bool, the real tokens, for a layer that carries a state instead of keys; None where it asks for none."""
    return None if kept.index.shape[1] == 1 or bool(kept.valid.all()) else kept.valid


def check_state(kept: TokenIndex, given: Tensor, past: int) -> None:
    """Raise RuntimeStateError where dropping would put padding behind what a recurrent state has seen.

    Args:
        kept: the survivors of this forward.
        given: (B, L) bool, its real tokens before.
        past: tokens that the state has seen; padding before all of them does it no harm.
    """
    if past and bool(((~kept.valid).sum(1) > (~given).sum(1)).any()):
        raise RuntimeStateError(
            "the prompts of this batch continue a cache and would keep different numbers of tokens, but layers of "
            "convolution or linear attention cannot skip padding in the middle of a sequence; ask them one by one, or "
            "with images of one size."
        )


def _masked_value(dtype: torch.dtype) -> float | bool:
    return False if dtype == torch.bool else torch.finfo(dtype).min
