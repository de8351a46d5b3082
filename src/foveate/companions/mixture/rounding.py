"""Weights of few bits: rounded in groups, packed without a bit to spare, and read back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .bit_plan import CompressionError


def round_weight(weight: Tensor, bits: int, group: int = 128) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and zero points of a weight, rounded to nearest.

    `group` neighbours of a row share a scale; the last group of a row may be shorter. With 2 bits or more, the codes
    0 … 2^bits - 1 cover what lies between the group's extremes and 0. One bit is the sign, and the scale is the mean
    magnitude of the group.

    Args:
        weight: (rows, columns) floating point.
        bits: 1 to 8.
        group: at least 1.

    Returns:
        codes (rows, columns) uint8, scales (rows, groups) float16 and zero points (rows, groups) uint8; None for signs.

    Raises:
        CompressionError: for weights that are not finite, or too large for a scale of 16 bits.
    """
    require_roundable(weight)
    rows, columns = weight.shape
    groups = -(-columns // group)
    exact = weight.detach().float()
    parts = nn.functional.pad(exact, (0, groups * group - columns)).view(rows, groups, group)
    if bits == 1:
        sizes = torch.full((groups,), float(group), device=weight.device)
        sizes[-1] = columns - (groups - 1) * group
        scale, zero = (parts.abs().sum(-1) / sizes).half(), None
        codes = (parts >= 0).to(torch.uint8)
    else:
        low, high, top = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0), 2**bits - 1
        scale = ((high - low) / top).half()
        step = torch.where(scale > 0, scale.float(), 1.0)
        zero = (-low / step).round().clamp(0, top).to(torch.uint8)
        codes = ((parts / step[..., None]).round() + zero[..., None]).clamp(0, top).to(torch.uint8)
    return codes.reshape(rows, -1)[:, :columns], scale, zero


def require_roundable(weight: Tensor) -> None:
    """Refuse weights whose scales 16 bits could not hold: a scale is at most as large as the largest weight.

    Raises:
        CompressionError: for weights that are not finite, or too large.
    """
    if not bool((weight.detach().abs() <= torch.finfo(torch.float16).max).all()):  # NaN is not, either
        raise CompressionError("weights that are not finite, or too large for a scale of 16 bits, cannot be rounded.")


def restore_weight(codes: Tensor, scale: Tensor, zero: Tensor | None, group: int, dtype: torch.dtype) -> Tensor:
    """The weight (rows, columns) that codes stand for; see `round_weight`."""
    columns = codes.shape[1]
    wide = scale.float().repeat_interleave(group, 1)[:, :columns]
    level = (
        codes.float() * 2 - 1 if zero is None else codes.float() - zero.float().repeat_interleave(group, 1)[:, :columns]
    )
    return (level * wide).to(dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (rows, columns) as bytes (rows, ceil(columns * bits / 8)), the lowest bit first."""
    ones = (codes[..., None] >> torch.arange(bits, device=codes.device, dtype=torch.uint8)) & 1
    ones = ones.flatten(1)
    ones = nn.functional.pad(ones, (0, -ones.shape[1] % 8)).unflatten(1, (-1, 8))
    return (ones << torch.arange(8, device=codes.device, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The codes (rows, columns) uint8 that `pack` packed."""
    ones = (packed[..., None] >> torch.arange(8, device=packed.device, dtype=torch.uint8)) & 1
    ones = ones.flatten(1)[:, : columns * bits].unflatten(1, (columns, bits))
    return (ones << torch.arange(bits, device=packed.device, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


class PackedWeight(nn.Module):
    """A weight (rows, columns) of few bits as it lies in memory; calling it gives the weight.

    Args:
        rows: of the weight, which is 0 until `fill`.
        columns: of the weight.
        bits: 1 to 8.
        group: how many neighbours of a row share a scale.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, rows: int, columns: int, bits: int, group: int = 128) -> None:
        super().__init__()
        self.bits, self.group, self.columns = bits, group, columns
        groups = -(-columns // group)
        self.register_buffer("packed", torch.zeros(rows, -(-columns * bits // 8), dtype=torch.uint8))
        # As integers, so that `model.half()` and `model.to(dtype)` leave the scales as they are.
        self.register_buffer("scale", torch.zeros(rows, groups, dtype=torch.int16))
        zero = None if bits == 1 else torch.zeros(rows, -(-groups * bits // 8), dtype=torch.uint8)
        self.register_buffer("zero", zero)

    def fill(self, weight: Tensor) -> PackedWeight:
        """Round a weight to nearest and hold it, on its device; gives this module.

        Raises:
            CompressionError: as `round_weight` does.
        """
        codes, scale, zero = round_weight(weight, self.bits, self.group)
        self.packed, self.scale = pack(codes, self.bits), scale.view(torch.int16)
        self.zero = None if zero is None else pack(zero, self.bits)
        return self

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The weight (rows, columns), as near as `dtype` comes."""
        scale = self.scale.view(torch.float16)
        zero = None if self.zero is None else unpack(self.zero, self.bits, scale.shape[1])
        return restore_weight(unpack(self.packed, self.bits, self.columns), scale, zero, self.group, dtype)


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers of a module, shared ones once.

    Examples:
        >>> from foveate.companions.mixture import stored_bytes
        >>> stored_bytes(torch.nn.Linear(4, 2, dtype=torch.float16))
        20
    """
    return sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))
