"""What a prefill costs: FLOPs counted from the live modules' weights, KV-cache bytes from the text config.

A multiply-add counts as two FLOPs; attention counts every query-key pair (causal kernels that skip half of them
do not lower the figure), as papers of the field do. The prompt's text tokens and the vision encoder are counted.
A layer of linear attention reads its state twice and updates it once for each token, whatever the order in which a
kernel does it, and keeps that state, in float32, instead of keys and values; one of convolution keeps its last inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ..models import ModelAdapter
from ..tokens import Grid


def linear_weights(modules: Iterable[nn.Module]) -> int:
    """Weights of all linear and convolution layers below `modules`, one multiply-add a token each.

    Linear layers are told by how wide they are, and not by their class or weights: quantised ones have a class of their
    own, or pack several numbers into one.
    """
    return sum(_weights_of(module) for root in modules for module in root.modules())


def _weights_of(module: nn.Module) -> int:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return module.weight.numel()
    if not _is_linear(module) or any(map(_is_linear, module.children())):  # PEFT's stand around the layer's own
        return 0
    return int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]


def _is_linear(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))


def _attention_sizes(config: Any, layer: Any) -> tuple[int, int]:
    """What a layer of attention keeps of a token, in numbers, and its multiply-adds for a pair of query and key."""
    heads: int = config.num_attention_heads
    if (latent := getattr(config, "kv_lora_rank", None)) is not None:
        # Latent attention: what is cached is one vector of which all keys and values are made, and a rotary part.
        rotary, plain = config.qk_rope_head_dim, config.qk_nope_head_dim
        return latent + rotary, heads * (rotary + plain + config.v_head_dim)
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    # Heads may have been taken out of some layers (foveate.companions), and a config has one number for all.
    left: int = getattr(getattr(layer, "self_attn", None), "kv_heads_left", kv_heads)
    return 2 * left * width, 2 * (heads * left // kv_heads) * width


class CostModel:
    """Counts for one model; everything that depends on the model alone is computed once."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self._adapter = adapter
        config, layers = adapter.model.config.get_text_config(), range(len(adapter.text.layers))
        by_layer = getattr(config, "per_layer_config", None) or [config for _ in layers]
        sizes = [_attention_sizes(by_layer[layer], adapter.text.layers[layer]) for layer in layers]
        # A layer that takes the keys and values of a lower one keeps none.
        self._kept = [sizes[layer][0] * (adapter.source_of_keys(layer) == layer) for layer in layers]
        self._per_pair = [pair for _, pair in sizes]

    @cached_property
    def _layer_weights(self) -> list[int]:
        # Of experts, which are no linear layers, a token goes through the router and those that it chooses.
        routed = zip(self._adapter.text.layers, self._adapter.routed_weights(), strict=True)
        return [linear_weights([layer]) + more for layer, more in routed]

    @cached_property
    def _head_weights(self) -> int:
        return linear_weights([self._adapter.model.get_output_embeddings()])

    @cached_property
    def _vision_weights(self) -> tuple[int, list[int], list[tuple[int, int]]]:
        """Multiply-adds with weights: of each position outside the blocks, of each in a block, and of each LLM token.

        The latter beside the block behind which they are.
        """
        adapter = self._adapter
        projectors, encoder = adapter.token_modules(), set(adapter.vision.modules())
        inside = linear_weights([module for module in projectors if module in encoder])
        blocks = [linear_weights([block]) for block in adapter.vision_layers()]
        each = [(adapter.block_before(module), linear_weights([module])) for module in projectors]
        each.append((len(blocks) - 1, adapter.token_products))
        return linear_weights([adapter.vision]) - inside - sum(blocks), blocks, each

    def text_flops(self, lengths: Sequence[Sequence[int]], again: Mapping[int, float] | None = None) -> float:
        """FLOPs of the language model for one prefill; `lengths[layer][prompt]` tokens; logits of one token each.

        `again` tells how often attention is computed once more in a layer, for edits of it or to read it.
        """
        layers, times = enumerate(zip(self._layer_weights, lengths, strict=True)), again or {}
        total = sum(self._layer_flops(layer, weights, row, times.get(layer, 0)) for layer, (weights, row) in layers)
        return total + 2.0 * self._head_weights * len(lengths[0])

    def flops_through(self, layer: int, lengths: Sequence[int]) -> float:
        """FLOPs of the layers up to and with `layer` for prompts of these lengths, without logits."""
        weights = self._layer_weights[: layer + 1]
        return sum(self._layer_flops(one, each, lengths, 0) for one, each in enumerate(weights))

    def _layer_flops(self, layer: int, weights: int, lengths: Sequence[int], again: float) -> float:
        if (state := self._adapter.recurrent_state(layer)) is not None:
            return sum(2.0 * (weights + 3 * state.recurrent) * n for n in lengths)
        attention = 2.0 * self._per_pair[layer] * (1 + again)
        return sum(2.0 * weights * n + attention * n * n for n in lengths)

    def weights_per_visual_token(self, layers: int, vision: bool) -> float:
        """Multiply-adds with weights for each visual token in so many layers, and with `vision` in the encoder."""
        total = float(sum(self._layer_weights[:layers]))
        if vision:
            outside, blocks, each = self._vision_weights
            grid = Grid(4, 4)
            positions = self._adapter.entering(grid) / len(grid)
            total += positions * (outside + sum(blocks)) + sum(weights for _, weights in each)
        return total

    def vision_flops(self, grids: Sequence[Grid], kept: Mapping[int, Sequence[Tensor]] | None = None) -> float:
        """FLOPs of the vision encoder and projector for these images.

        Args:
            grids: of the images.
            kept: by block from which on tokens were left out, -1 being before all of them: of each image which (n,) go
                on from there.
        """
        return sum(
            self._image_flops(grid, {block: masks[image] for block, masks in (kept or {}).items()})
            for image, grid in enumerate(grids)
        )

    def _image_flops(self, grid: Grid, kept: Mapping[int, Tensor]) -> float:
        adapter, (outside, blocks, each) = self._adapter, self._vision_weights
        patches, whole = adapter.patches(grid), len(grid)
        total = 2.0 * (outside * patches + adapter.grid_products(grid))
        pairs = {start: adapter.vision_attention_pairs(grid, mask) for start, mask in kept.items()}
        unpruned = adapter.vision_attention_pairs(grid)
        counts = {start: int(mask.sum()) for start, mask in kept.items()}
        for block, weights in enumerate(blocks):
            start = max((one for one in kept if one <= block), default=None)
            entering = patches if start is None else adapter.entering(grid, kept[start])
            attended = unpruned if start is None else pairs[start]
            total += 2.0 * weights * entering + 4.0 * adapter.vision_width * attended[block]
        for block, weights in each:
            start = max((one for one in kept if one <= block), default=None)
            packed = adapter.encoder_layout == "packed"  # else what left comes as zeros
            total += 2.0 * weights * (counts[start] if start is not None and packed else whole)
        return total

    def kv_bytes(self, lengths: Sequence[Sequence[int]], bytes_per_value: int) -> int:
        """Bytes of keys and values after the prefill, real tokens only, and of the states that layers carry instead."""
        total = 0
        for layer, row in enumerate(lengths):
            if (state := self._adapter.recurrent_state(layer)) is not None:
                total += len(row) * (4 * state.recurrent + bytes_per_value * state.convolution)
            else:
                total += sum(row) * self._kept[layer] * bytes_per_value
        return total
