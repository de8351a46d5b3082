"""A bias on the attention logits of all layers, for keys that stand for several tokens and for gaps between them.

It is added to the mask that a kernel is handed, so it needs one that takes additive masks: SDPA or eager attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..importance.rotary import rotary_decay
from ..methods import Method
from ..methods.editing import LogitBias
from .reading import joint_table
from .step import Step
from .tap import Around, Kernel

_KERNELS = ("sdpa", "eager")


def bias_seam(methods: Sequence[Method], text: Any, step: Callable[[], Step]) -> BiasSeam | None:
    """The seam that the methods ask for; None where the logits stay as they are.

    Raises:
        ModelError: where the language model `text` runs a kernel that takes no additive mask.
    """
    asking = next((method for method in methods if method.bias is not None), None)
    if asking is None or asking.bias is None:
        return None
    kernel = text.config._attn_implementation
    if kernel not in _KERNELS:
        raise ModelError(
            f"{asking.name} adds to the attention logits, which {kernel!r} does not take; "
            "call model.set_attn_implementation('sdpa') first."
        )
    return BiasSeam(asking.bias, text, step)


class BiasSeam:
    """Stands around the attention of all layers."""

    def __init__(self, bias: LogitBias, text: Any, step: Callable[[], Step]) -> None:
        self._bias, self._config, self._layers, self._step = bias, text.config, text.layers, step
        self._removable: list[Any] = []

    def hook(self) -> None:
        """Put everything in place."""
        eager, add = torch.compiler.disable, self._removable.append
        add(self._layers[0].register_forward_pre_hook(eager(self._enter), with_kwargs=True))
        for index, layer in enumerate(self._layers):
            add(Around(layer.self_attn, eager(functools.partial(self._biased, index))))

    def remove(self) -> None:
        """Take everything away again."""
        for handle in self._removable:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Compute what distance adds, of all tokens that enter the language model."""
        step = self._step()
        if step.spans and self._bias.ceiling is not None:
            rotary = joint_table(kwargs["position_embeddings"], self._config)
            decay = rotary_decay(rotary, rotary)
            far = (self._bias.ceiling - decay).clamp_min(torch.finfo(decay.dtype).eps).log()
            assert step.chunk_valid is not None
            far = far.repeat(len(step.chunk_valid) // len(far), 1, 1)
            shown = {span.row for span in step.spans}
            far[[row for row in range(len(far)) if row not in shown]] = 0  # prompts without images stay as they are
            if (generated := step.length - step.prompt) > 0:  # without a cache; what is generated sees sizes alone
                far[:, -generated:] = 0
            step.far = far

    def _biased(
        self,
        layer: int,
        kernel: Kernel,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        step = self._step()
        if step.state is not None and step.state.before is not None and step.state.before.sizes is not None:
            mask = self._added(step, layer, query, key, mask)
        return kernel(module, query, key, value, mask, **kwargs)

    def _added(self, step: Step, layer: int, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """(B, 1, W, S) in the query's dtype: the mask with what the bias adds."""
        valid, past = step.keys(layer)
        state, below = step.state, step.stage_below(layer + 1)
        assert state is not None and state.before is not None and state.before.sizes is not None
        sizes = state.before.sizes[..., min(layer, 1)]
        if below is not None:
            sizes = sizes.gather(1, state.inside[below].column)
        width, room = query.shape[2], key.shape[2]
        out = torch.zeros(len(sizes), 1, width, room, device=query.device)
        out[..., : sizes.shape[1]] = sizes.log()[:, None, None]
        if step.far is not None:
            far = step.far
            if below is not None:
                index = step.inside[below].index
                far = far.gather(1, index[:, :, None].expand(-1, -1, far.shape[2]))
                far = far.gather(2, index[:, None].expand(-1, far.shape[1], -1))
            out[:, 0, :, past : past + width] += far
        if mask is None:
            order = torch.arange(room, device=query.device)
            seen = order[None] <= past + order[:width, None]
            real = torch.nn.functional.pad(valid, (0, room - valid.shape[1]))
            mask = (seen & real[:, None])[:, None]
        if mask.ndim != 4:
            raise ModelError("the attention kernel takes no additive masks any more; switch it back to 'sdpa'.")
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, torch.finfo(query.dtype).min)
        return (out + mask.float()).to(query.dtype)
