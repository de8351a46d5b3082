"""Measure the attention prior that D2Pruner divides by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError, ModelError
from ..importance.attention_prior import AttentionPrior
from ..methods.toolkit.base import attention_from
from ..models import adapter_of
from ..models.adapter import AttentionCall
from .cues import last_row
from .hooks import AttentionObserver
from .prompt import locate


@torch.no_grad()
def measure_prior(
    model: nn.Module, inputs: Iterable[Mapping[str, Any]], layer: int, prompt: str = ""
) -> AttentionPrior:
    """The mean attention that the last prompt token pays to each place of an image, one layer below `layer`.

    Args:
        model: a supported model.
        inputs: processor outputs of single, unpadded prompts with one image each; grids may differ, maps are
            resized to the first image's grid (bicubic) before they are averaged. The map of an image that the model
            sees in tiles is the mean of its tiles'.
        layer: the layer whose input D2Pruner shortens; attention is read one layer below, or in the first layer from
            there on that has any.
        prompt: the question asked, noted in the file.

    Raises:
        MethodError: for a layer that the model does not have, or when there is no image.
    """
    adapter = adapter_of(model)
    layers: Any = adapter.text.layers
    if not 1 <= layer < len(layers):
        raise MethodError(f"layer {layer} is not between 1 and {len(layers) - 1}, the layers of this model.")
    rows: list[Tensor] = []

    def observe(call: AttentionCall) -> None:
        valid = torch.ones(call.query.shape[0], call.query.shape[2], dtype=torch.bool, device=call.query.device)
        rows.append(last_row(call, valid, 0)[0])

    maps: list[Tensor] = []
    tap = AttentionObserver(layers[attention_from(adapter.attention_layers, layer - 1)].self_attn, observe)
    try:
        for one in inputs:
            rows.clear()
            model(**one, use_cache=False)
            spans = [s for s in locate(adapter, one["input_ids"], one) if s.modality == "image"]
            if not spans:
                raise ModelError("a calibration prompt holds no image; every input needs one.")
            if len({s.grid for s in spans}) > 1:
                raise ModelError("a calibration prompt holds images of several sizes; every input needs just one.")
            tiles = [rows[0][s.index].reshape(s.grid.rows, s.grid.columns).float().cpu() for s in spans]
            found = torch.stack(tiles).mean(0)  # the tiles that a model cuts an image into are of one shape
            if maps and found.shape != maps[0].shape:
                found = torch.nn.functional.interpolate(found[None, None], maps[0].shape, mode="bicubic")[0, 0]
            maps.append(found)
    finally:
        tap.remove()
    if not maps:
        raise MethodError("no images to calibrate with; give a folder that holds some.")
    mean = torch.stack(maps).mean(0).clamp_min(torch.finfo(torch.float32).tiny)
    return AttentionPrior(
        mean, layer=layer, model=str(getattr(model, "name_or_path", "")), images=len(maps), prompt=prompt
    )
