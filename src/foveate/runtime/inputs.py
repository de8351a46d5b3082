"""Hook-free pruning: shortened inputs for people who run their own loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError, ModelError
from ..methods import Method, Stage, get_method
from ..models import adapter_of
from .live import prune
from .plan import KeepLike

_OPTIONS = ("scope", "positions", "encoder_queries")  # of `prune`, which are no hyperparameters


class _Stop(Exception):
    """Leaves the forward as soon as the language model's inputs are known."""


@torch.no_grad()
def prune_inputs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    method: str | Method,
    keep: KeepLike = 0.25,
    **options: Any,
) -> dict[str, Tensor]:
    """Encode the images, merge them into the prompt and drop visual tokens, without running the language model.

    Args:
        model: a supported model; it is unchanged afterwards.
        inputs: what the processor returned.
        method: a method before the LLM.
        keep: see `Budget`.
        options: `scope`, `positions`, `encoder_queries` and hyperparameters as for `prune`.

    Returns:
        ``inputs_embeds`` (B, W, d), ``position_ids`` (B, W) or (3, B, W) at the original positions, and
        ``attention_mask`` (B, W), left-padded: ready for ``model.generate(**result)`` or ``model(**result)``.

    Raises:
        MethodError: for a method inside the LLM, which has no shortened inputs.
        ModelError: for a model with DeepStack, whose ``generate`` takes no rows to go with the embeddings, and for
            inputs without the tensor ``input_ids``.
    """
    adapter = adapter_of(model)
    if adapter.deepstack is not None:
        raise ModelError(
            f"{adapter.class_name} adds visual rows inside its language model (DeepStack), which cannot be passed to "
            "generate beside shortened inputs; use foveate.prune."
        )
    if not isinstance(inputs, Mapping) or not isinstance(inputs.get("input_ids"), Tensor):
        raise ModelError(
            "prune_inputs takes what the processor returned with return_tensors='pt'; the tensor input_ids is missing."
        )
    if not isinstance(method, (str, Method)):
        raise MethodError(f"{method} is not one method before the LLM; foveate.prune takes several.")
    fields = {k: v for k, v in options.items() if k not in _OPTIONS}
    method = get_method(method, **fields)
    if method.stage not in (Stage.BEFORE_ENCODER, Stage.BEFORE_LLM):
        fix = "use foveate.prune, or set its inside=False" if method.stage is Stage.BOTH else "use foveate.prune"
        raise MethodError(f"{method.name} works inside the LLM, which shortened inputs do not tell of; {fix}.")
    found: dict[str, Any] = {}

    def stop(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found.update(kwargs)
        raise _Stop

    rest = {k: v for k, v in options.items() if k in _OPTIONS}
    with prune(model, method, keep, **rest) as pruning:
        handle = pruning.text.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            model(**{**inputs, "use_cache": False})
        except _Stop:
            pass
        finally:
            handle.remove()
    embeds: Tensor = found["inputs_embeds"]
    batch, width = embeds.shape[:2]
    mask, ids = found.get("attention_mask"), found.get("position_ids")
    if mask is None:
        mask = torch.ones(batch, width, dtype=torch.long, device=embeds.device)
    if ids is None:
        ids = torch.arange(width, device=embeds.device).expand(batch, -1)
    return {"inputs_embeds": embeds, "position_ids": ids, "attention_mask": mask}
