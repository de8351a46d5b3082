"""vLLM's linear attention on CPUs in float32, for its own kernels take bfloat16 alone, which says too little.

What vLLM does around it stays vLLM's: which requests run in a step, where their states lie, when they begin anew.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.nn.functional import normalize, silu, softplus


def use_plain_kernels() -> None:
    """From here on vLLM's engines in this process compute linear attention by `_core` where they run in float32."""
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention as upstream

    kernels = upstream.cpu_gdn_attention_core
    if kernels.__module__ == __name__:
        return

    def core(mixed_qkv: Tensor, b: Tensor, a: Tensor, core_attn_out: Tensor, layer_name: Any) -> None:
        if mixed_qkv.dtype == torch.float32:
            layer = upstream.get_forward_context().no_compile_layers[upstream._resolve_layer_name(layer_name)]
            every = upstream.get_forward_context().attn_metadata
            if every is not None:
                _core(layer, every[layer.prefix], mixed_qkv, b, a, core_attn_out)
        else:
            kernels(mixed_qkv, b, a, core_attn_out, layer_name)

    core.__annotations__ = get_type_hints(kernels) | {"return": None}  # torch makes an operator of it
    upstream.cpu_gdn_attention_core = core


def _core(layer: Any, step: Any, mixed: Tensor, b: Tensor, a: Tensor, out: Tensor) -> None:
    """The gated delta rule for all requests of a step, token by token; writes to `out` (n, heads, width)."""
    convolved, states = layer.kv_cache  # (slots, 3, channels) and (slots, heads, width of values, width of keys)
    kernel = layer.conv1d.weight.flatten(1)  # (channels, 4)
    bounds = step.non_spec_query_start_loc.tolist()
    for request, (first, last) in enumerate(pairwise(bounds)):
        if first == last:
            continue
        slot = int(step.non_spec_state_indices_tensor[request])
        begun = request < step.num_decodes or bool(step.has_initial_state[request])
        before = convolved[slot] if begun else torch.zeros_like(convolved[slot])
        state = states[slot].clone() if begun else torch.zeros_like(states[slot])
        rows = torch.cat([before, mixed[first:last]])
        convolved[slot] = rows[-len(before) :]
        seen = silu((rows.unfold(0, len(before) + 1, 1) * kernel).sum(-1))
        keys = layer.key_dim // layer.tp_size
        query, key, value = seen.split([keys, keys, seen.shape[1] - 2 * keys], dim=1)
        heads = states.shape[1]
        query, key = (
            normalize(part.unflatten(1, (-1, layer.head_k_dim)), dim=-1, eps=1e-6).repeat_interleave(
                heads // (keys // layer.head_k_dim), 1
            )
            for part in (query, key)
        )
        value = value.unflatten(1, (heads, -1))
        decay = (-layer.A_log.exp() * softplus(a[first:last] + layer.dt_bias)).exp()
        rate = b[first:last].sigmoid()
        for token in range(last - first):
            state = state * decay[token, :, None, None]
            error = value[token] - (state * key[token, :, None]).sum(-1)
            state = state + (rate[token, :, None] * error)[..., None] * key[token, :, None]
            out[first + token] = (state * query[token, :, None]).sum(-1) * layer.head_k_dim**-0.5
        states[slot] = state
