"""Two models in step: a small one runs first, and mapped layers of the large one take its attention."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ...errors import ModelError, RuntimeStateError
from ...importance.attention import attention_weights
from ...models.adapter import AttentionCall
from ...runtime.compat import cache_of
from ...runtime.cues import visible_keys
from ...runtime.hooks import Attached, Hooks, without_hooks
from .checks import check_models, decoder_of, refuse_pruned
from .similarity import Measure, Similarity
from .state import Forward, Prompt, ValuesLayer


@dataclass(frozen=True)
class MappingReport:
    """What the latest forward left behind.

    Args:
        tokens: in the cache of each prompt of the batch, padding included.
        layers: which are mapped by now; empty before the prompt is as long as `entry`.
        heads: of each mapped layer the matches (B, H): a pair's number is ``layer * heads + head`` of the small model.
        similarity: of each of these heads (B, H) to its match.
        key_bytes: what the large model's keys take.
        value_bytes: what its values take.
        small_bytes: what keys and values of the small model take.
        mapped_key_bytes: what the keys of the mapped layers take.
        unmapped_bytes: what the large model alone would take without mapping.
    """

    tokens: int
    layers: tuple[int, ...]
    heads: Mapping[int, Tensor]
    similarity: Mapping[int, Tensor]
    key_bytes: int
    value_bytes: int
    small_bytes: int
    mapped_key_bytes: int
    unmapped_bytes: int

    @property
    def saved(self) -> float:
        """The share of the KV cache that is saved, the small model's cache counted; negative where it costs more."""
        return 1 - (self.key_bytes + self.value_bytes + self.small_bytes) / self.unmapped_bytes


class AttentionMapping(Attached):
    """Two models in step; made by `map_attention`, and a context manager that detaches on exit."""

    def __init__(
        self, large: nn.Module, small: nn.Module, layers: Sequence[int], entry: int, longest: int, measure: Measure
    ) -> None:
        self.layers, self.entry, self.longest, self.measure = tuple(sorted(set(layers))), entry, longest, measure
        self._large: Any = large
        self._small: Any = without_hooks(small, foreign=True) if small is large else small
        self._models: tuple[Any, Any] = (large, small)
        self._text, self._small_text = decoder_of(large), decoder_of(self._small)
        self._takes, self._small_takes = (
            tuple(inspect.signature(type(model).forward).parameters)[1:] for model in (large, self._small)
        )
        self._heads = self._small_text.config.num_attention_heads
        self._forward: Forward | None = None
        self._asked: Forward | None = None  # of the small model, while it runs
        self._report: MappingReport | None = None
        self._hooks = Hooks()
        if not self.layers:
            return
        self._hooks.before(large, self._begin)
        self._hooks.after(large, self._finish, always=True)
        for index, layer in enumerate(self._small_text.layers):
            self._hooks.observe(layer.self_attn, functools.partial(self._read_small, index))
        for index in self.layers:
            attention = self._text.layers[index].self_attn
            self._hooks.observe(attention, functools.partial(self._read_large, index))
            self._hooks.replace(attention, "forward", functools.partial(self._attend, index, attention.forward))

    def __enter__(self) -> AttentionMapping:
        return self

    def __exit__(self, *raised: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Leave both models as they were. A cache with mapped layers is of no use afterwards."""
        self._hooks.remove()

    def report(self) -> MappingReport:
        """What the latest forward left behind.

        Raises:
            RuntimeStateError: before the first forward, and where no layer is mapped.
        """
        if self._report is None:
            raise RuntimeStateError(
                "there is nothing to report yet; map at least one layer and call the large model or its generate first."
            )
        return self._report

    # -- one forward of the large model

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Run the small model on what the large one is given."""
        self._forward = None  # of a call that failed
        refuse_pruned(*self._models)
        given = {**dict(zip(self._takes, args, strict=False)), **kwargs}
        ids = given.get("input_ids")
        if not isinstance(ids, Tensor) or given.get("inputs_embeds") is not None:
            raise RuntimeStateError(
                "two models in step read tokens, and this call has embeddings, which differ between them; pass "
                "input_ids alone."
            )
        cache = cache_of(given)
        if cache is None:
            cache = DynamicCache(config=self._text.config)
        past = cache.get_seq_length()
        prompt = self._prompt_of(cache, past, ids.shape[1])
        mask, width = given.get("attention_mask"), past + ids.shape[1]
        if mask is not None and not (isinstance(mask, Tensor) and mask.shape == (len(ids), width)):
            raise RuntimeStateError(
                f"two models in step need an attention_mask of shape {(len(ids), width)}, one entry for each token in "
                "the cache and each new one; pass such a mask or none."
            )
        valid = torch.ones(len(ids), width, dtype=torch.bool, device=ids.device) if mask is None else mask.bool()
        self._forward = Forward(prompt, cache, past, ids.shape[1], valid)
        self._run_small(given)
        given = {name: value for name, value in given.items() if name not in ("past_key_values", "cache")}
        return (), {**given, _cache_name(self._takes): cache, "use_cache": True}

    def _prompt_of(self, cache: Any, past: int, length: int) -> Prompt:
        """What is known of a cache's prompt; for an empty one, make its mapped layers hold values alone."""
        known: Prompt | None = getattr(cache, "_foveate_mapping", None)
        if past:
            if known is None or known.tokens != past or known.small_cache.get_seq_length() != past:
                raise RuntimeStateError(
                    "this cache was not filled with both models in step, or a forward on it failed; begin the prompt "
                    "again with an empty cache."
                )
            return known
        count = len(self._text.layers)
        while type(cache) is DynamicCache and len(cache.layers) < count:
            cache.layers.append(DynamicLayer())
        plain = type(cache) is DynamicCache and not getattr(cache, "offloading", False)
        if not plain or any(not isinstance(layer, DynamicLayer) for layer in cache.layers):
            raise RuntimeStateError(
                f"layers can be mapped in a plain DynamicCache alone, and this is a {type(cache).__name__}; leave "
                "cache_implementation and past_key_values out."
            )
        for index in self.layers:
            cache.layers[index] = ValuesLayer()
        until = min(max(length, self.entry), self.longest)
        cache._foveate_mapping = prompt = Prompt(DynamicCache(config=self._small_text.config), until)
        return prompt

    @torch.no_grad()
    def _run_small(self, given: Mapping[str, Any]) -> None:
        small, forward = self._small, self._forward
        assert forward is not None
        device = next(small.parameters()).device
        passed: dict[str, Any] = {}
        for name, value in given.items():
            if name not in self._small_takes or name in ("labels", "past_key_values", "cache"):
                continue
            if isinstance(value, Tensor):
                value = value.to(device)
                value = value.to(small.dtype) if value.is_floating_point() else value
            passed[name] = value
        if "logits_to_keep" in self._small_takes:
            passed["logits_to_keep"] = 1
        passed |= {_cache_name(self._small_takes): forward.prompt.small_cache, "use_cache": True}
        passed |= {name: False for name in ("output_attentions", "output_hidden_states") if name in passed}
        self._asked = forward
        try:
            small(**passed)
        finally:
            self._asked = None

    def _read_small(self, layer: int, call: AttentionCall) -> None:
        forward = self._asked
        if forward is None:  # somebody else runs the small model
            return
        matched = forward.prompt.heads
        first = layer * self._heads
        if len(matched) == len(self.layers) and not any(
            bool(((one >= first) & (one < first + self._heads)).any()) for one in matched.values()
        ):
            return  # nobody takes a row of this layer
        rows = _rows(call, forward, forward.new)
        if forward.rows is None:
            count = self._heads * len(self._small_text.layers)
            forward.rows = rows.new_zeros(len(rows), count, *rows.shape[2:])
        forward.rows[:, first : first + self._heads] = rows.to(forward.rows.device)

    @torch.no_grad()
    def _read_large(self, layer: int, call: AttentionCall) -> None:
        """Compare the map of a layer that is still itself to those of the small model."""
        forward = self._forward
        if forward is None or forward.rows is None:
            return
        own = call.query.shape[2]
        mine = _rows(call, forward, own)
        real = forward.valid[:, forward.past : forward.past + own].to(mine.device)
        theirs = forward.rows[:, :, :own, : forward.past + own].to(mine.device)
        forward.prompt.similarities.setdefault(layer, Similarity()).add(mine, theirs, real)

    def _attend(self, layer: int, itself: Any, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """A mapped layer's attention: by itself until the heads are matched, then by rows of the small model."""
        forward = self._forward
        if forward is None:
            raise RuntimeStateError(
                "a part of the large model was called by itself, so that the small one could not run before it; call "
                "the model that was given to map_attention."
            )
        prompt, past, new = forward.prompt, forward.past, forward.new
        held: ValuesLayer = forward.cache.layers[layer]
        own = min(new, max(prompt.until - past, 0))
        parts: list[Tensor] = []
        weights: Any = None
        if own:
            part, weights = itself(hidden_states[:, :own], **_shortened(kwargs, own, past, new))
            parts.append(part)
        if layer not in prompt.heads and past + own >= prompt.until:
            tokens = forward.valid[:, : prompt.until].sum(1).to(hidden_states.device)
            similarity = prompt.similarities.pop(layer).matrix(self.measure, tokens)
            prompt.best[layer], prompt.heads[layer] = similarity.max(-1)
            held.drop_keys()
        if own < new:
            module = self._text.layers[layer].self_attn
            rest = hidden_states[:, own:]
            values = module.v_proj(rest).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
            values = held.append(values)
            heads = prompt.heads[layer]
            assert forward.rows is not None
            rows = forward.rows[:, :, own:].to(heads.device)
            rows = rows[torch.arange(len(heads), device=heads.device)[:, None], heads].to(values.dtype)
            mixed = rows.unflatten(1, (values.shape[1], -1)) @ values[:, :, None]  # (B, Hkv, H / Hkv, new, hd)
            parts.append(module.o_proj(mixed.flatten(1, 2).transpose(1, 2).flatten(2)))
            weights = None
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)), weights

    def _finish(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        forward, self._forward = self._forward, None
        if forward is None or output is None:  # it failed
            return
        prompt = forward.prompt
        prompt.tokens = forward.past + forward.new
        layers = forward.cache.layers
        mapped = tuple(sorted(prompt.heads))
        keys, values = ([_bytes(getattr(layer, name)) for layer in layers] for name in ("keys", "values"))
        small = sum(_bytes(layer.keys) + _bytes(layer.values) for layer in prompt.small_cache.layers)
        self._report = MappingReport(
            tokens=prompt.tokens,
            layers=mapped,
            heads=dict(prompt.heads),
            similarity=dict(prompt.best),
            key_bytes=sum(keys),
            value_bytes=sum(values),
            small_bytes=small,
            mapped_key_bytes=sum(keys[index] for index in mapped),
            unmapped_bytes=2 * sum(values),  # keys are as large as values in all models that are served
        )


def map_attention(
    large: nn.Module,
    small: nn.Module,
    layers: Sequence[int],
    *,
    entry: int = 64,
    longest: int = 1024,
    measure: Measure = "cosine",
) -> AttentionMapping:
    """Let layers of a large model take a small model's attention, from now on until ``.detach()``.

    Then call the large model or its ``generate``: the small one runs before each of its forwards, on the same tokens.
    Heads are matched for each prompt, on its first tokens. Up to there, mapped layers are themselves.

    Examples:
        >>> layers = choose_layers(large, small, [inputs], share=0.5)
        >>> with map_attention(large, small, layers) as mapping:
        ...     output = large.generate(**inputs, max_new_tokens=32)
        >>> mapping.report().mapped_key_bytes
        0

    Args:
        large: a causal language model, or a multimodal one, with attention of the kind of Llama, Mistral and Qwen.
        small: one of its family, with its tokenizer. It may be `large` itself, which changes nothing.
        layers: which layers of `large` are mapped; see `choose_layers`. None at all leaves the model as it is.
        entry: a shorter prompt is continued without mapping until there are so many tokens. (Not told by the paper.)
        longest: of a longer prompt, heads are matched on the first so many tokens, and the rest is mapped. (Likewise.)
        measure: of how alike two attention maps are; ``"pearson"`` subtracts their means.

    Raises:
        ModelError: where the models do not fit, or attend in another way.
        RuntimeStateError: where one of them is pruned by foveate; and later, from a call that cannot be mapped: beams,
            an assistant, embeddings, caches that are not plain.
    """
    check_models(large, small)
    count = len(decoder_of(large).layers)
    if any(not isinstance(layer, int) or not 0 <= layer < count for layer in layers):
        raise ModelError(f"layers={list(layers)} are not all layers of the large model; it has 0 to {count - 1}.")
    if not 1 <= entry <= longest:
        raise ModelError(f"entry={entry} and longest={longest} must be at least 1, and entry not above longest.")
    if measure not in get_args(Measure):
        raise ModelError(f"measure={measure!r} is not a measure; give one of {', '.join(get_args(Measure))}.")
    return AttentionMapping(large, small, layers, entry, longest, measure)


def _rows(call: AttentionCall, forward: Forward, count: int) -> Tensor:
    """(B, H, count, S) float32: attention of the first queries of a forward, 0 on what they do not see."""
    queries = torch.arange(count, device=call.query.device).expand(len(call.query), -1)
    valid = forward.valid[:, : forward.past + count].to(call.query.device)
    visible, _ = visible_keys(call, valid, forward.past, queries)
    seen = visible.any(-1, keepdim=True)  # rows of padding may see nothing, and must not become NaN
    weights = attention_weights(call.query[:, :, :count], call.key, call.scaling, visible | ~seen)
    return weights * seen[:, None]


def _shortened(kwargs: Mapping[str, Any], own: int, past: int, new: int) -> dict[str, Any]:
    """The arguments of an attention module for the first `own` of its `new` tokens."""
    if own == new:
        return dict(kwargs)
    short = dict(kwargs)
    short["position_embeddings"] = tuple(one[..., :own, :] for one in kwargs["position_embeddings"])
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor):
        short["attention_mask"] = mask[..., :own, : past + own] if mask.ndim == 4 else mask[..., : past + own]
    elif mask is not None:
        raise RuntimeStateError(
            f"a mask of kind {type(mask).__name__} cannot be cut where mapping begins; load the large model with "
            'attn_implementation="sdpa".'
        )
    if isinstance(kwargs.get("position_ids"), Tensor):
        short["position_ids"] = kwargs["position_ids"][..., :own]
    return short


def _cache_name(takes: Sequence[str]) -> str:
    return "cache" if "cache" in takes else "past_key_values"  # 5.24 takes both, and warns of the latter


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
