"""Edits of attention weights in chosen layers, with the kernel that the model has.

Kernels such as SDPA never show their weights. But where a weight is set to zero behind the softmax, the value that it
weighs might as well be zero, and where weights move to another token, their values might as well be that token's. So
the kernel runs once more on edited values, and the rows whose attention is edited are taken from there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..methods import Method
from ..methods.editing import AttentionEdit
from .kept import Kept
from .step import Step
from .tap import Around, Kernel


def edits_of(methods: Sequence[Method], layers: int) -> dict[int, list[AttentionEdit]]:
    """What the methods of all stages ask for, by layer.

    Raises:
        MethodError: where two of them edit the same rows of a layer.
    """
    asking: dict[tuple[int, str], tuple[AttentionEdit, str]] = {}
    for method in methods:
        for edit in method.edits(layers):
            known, other = asking.setdefault((edit.layer, edit.rows), (edit, method.name))
            if known != edit:
                raise MethodError(
                    f"{other} and {method.name} both edit what {edit.rows} tokens attend to in layer {edit.layer}; "
                    "use one of them."
                )
    by_layer: dict[int, list[AttentionEdit]] = {}
    for edit, _ in asking.values():
        by_layer.setdefault(edit.layer, []).append(edit)
    return by_layer


def edit_layer(module: nn.Module, edits: Sequence[AttentionEdit], step: Callable[[], Step]) -> Around:
    """Edit the attention module of a layer until ``.remove()``; `step` tells of the forward that runs."""
    return Around(module, functools.partial(torch.compiler.disable(_edited), edits, step))


def _edited(
    edits: Sequence[AttentionEdit],
    step: Callable[[], Step],
    kernel: Kernel,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    out, *rest = kernel(module, query, key, value, *args, **kwargs)
    now = step()
    for edit in edits if now.spans else ():
        other = kernel(module, query, key, _values(now, edit, value), *args, **kwargs)[0]
        out = torch.where(_rows(now, edit, query.shape[2])[..., None, None], other, out)
    return (out, *rest)


def _rows(step: Step, edit: AttentionEdit, width: int) -> Tensor:
    """(B, W) bool: whose attention is edited."""
    assert step.chunk_valid is not None
    batch = len(step.chunk_valid)
    rows = step.visual(edit.layer + 1, batch * width).view(batch, width)
    if edit.rows == "visual":
        return rows
    text = Kept.of(step.text())
    at = step.placed(text.index, torch.arange(batch, device=rows.device)[:, None], edit.layer + 1)
    marked = torch.zeros(batch, width + 1, dtype=torch.bool, device=rows.device)
    # Padding entries are sent to a spare last column.
    return marked.scatter_(1, torch.where(text.valid, at, width), True)[:, :-1]


def _values(step: Step, edit: AttentionEdit, value: Tensor) -> Tensor:
    """(B, Hkv, S, hd): what rows read that the edit is about, of visual tokens of this forward."""
    _, past = step.keys(edit.layer)
    value = value.clone()
    ranges: dict[tuple[int, int], list[Tensor]] = {}
    for number, span in enumerate(step.spans):
        at = step.placed(span.index, span.row, edit.layer + 1)
        columns = past + at[at >= 0].to(value.device)
        ranges.setdefault((span.row, number if edit.of == "image" else 0), []).append(columns)
    for (row, _), parts in ranges.items():
        columns = torch.cat(parts)
        lost = columns[: int(edit.share * len(columns))]
        value[row, :, lost] = value[row, :, columns[:1]] if edit.moved == "first" else 0.0
    return value
