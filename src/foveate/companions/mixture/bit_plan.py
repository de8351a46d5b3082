"""Which expert gets how many bits: an exact solver for one layer, and the plan of a whole model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ...errors import FoveateError
from ...files import MARK, write_bytes

CHOICES = (1, 2, 3)  # the paper's
FORMAT, VERSION = "foveate-bit-plan", 1


class CompressionError(FoveateError, ValueError):
    """A model, or what is asked of it, cannot be compressed."""


def plan_bits(
    costs: ArrayLike, budget: int, choices: Sequence[int] = CHOICES, required: Sequence[int] = (2, 3)
) -> tuple[int, ...]:
    """The bits of each expert that cost least in all, of those that add up to `budget` at most.

    Exact: a dynamic programme over experts, bits used and which of the required widths occur. Equal costs are decided
    for fewer bits, in the experts that come first.

    Args:
        costs: (experts, choices) finite numbers: what it costs to give an expert so many bits.
        budget: the largest sum of bits.
        choices: the bits that an expert may have.
        required: of these each that one expert has at least; () for none.

    Raises:
        CompressionError: when no plan meets the budget, or the costs cannot be added up.

    Examples:
        >>> from foveate.companions.mixture import plan_bits
        >>> plan_bits([[9, 4, 1], [2, 1, 0], [9, 1, 0.9]], budget=6)
        (3, 1, 2)
    """
    table = np.asarray(costs, dtype=np.float64)
    if not set(required) <= set(choices) or len(set(choices)) < len(choices) or min(choices, default=0) < 1:
        raise CompressionError(f"choices={tuple(choices)} must be different bits, all of {tuple(required)} among them.")
    if table.ndim != 2 or table.shape[1] != len(choices) or not np.isfinite(table).all():
        raise CompressionError(f"costs must be finite numbers (experts, {len(choices)}), one column a choice of bits.")
    experts, wanted = len(table), sorted(set(required))
    least = (sum(wanted) + (experts - len(wanted)) * min(choices)) if experts >= len(wanted) else None
    if least is None or budget < least:
        short = f"{experts} experts" if least is None else f"{budget} bits"
        need = f"{len(wanted)} experts" if least is None else f"{least} bits"
        raise CompressionError(
            f"{short} are too few: one expert each of {wanted} bits among {experts} takes {need}; raise the budget, or "
            "require less."
        )
    budget = min(budget, experts * max(choices))
    mark = {bits: 1 << wanted.index(bits) if bits in wanted else 0 for bits in choices}
    everything = (1 << len(wanted)) - 1
    order = sorted((at for at in range(len(choices)) if choices[at] <= budget), key=lambda at: choices[at])

    # best[met, used]: the least cost of the experts from `expert` on, where `met` of the required widths occur among
    # them and they use exactly `used` bits. From the last to the first, so that reading the plan off goes forwards.
    best = np.full((everything + 1, budget + 1), np.inf)
    best[0, 0] = 0.0
    after = [best]
    for expert in range(experts - 1, -1, -1):
        now = np.full_like(best, np.inf)
        for at in order:
            bits = choices[at]
            for met in range(everything + 1):
                reached = now[met | mark[bits]]
                np.minimum(reached[bits:], best[met, : budget + 1 - bits] + table[expert, at], out=reached[bits:])
        best = now
        after.append(best)
    after.reverse()  # after[e]: of the experts from e on

    used, met, plan = int(np.argmin(after[0][everything])), everything, []
    for expert in range(experts):
        used, met, bits = _step(after, table, expert, used, met, [(choices[at], at) for at in order], mark)
        plan.append(bits)
    return tuple(plan)


def _step(
    after: Sequence[np.ndarray],
    table: np.ndarray,
    expert: int,
    used: int,
    met: int,
    choices: Sequence[tuple[int, int]],
    mark: dict[int, int],
) -> tuple[int, int, int]:
    """What is left to use and to meet behind an expert, and its bits: those by which its least cost came about."""
    for bits, at in choices:
        if bits > used or mark[bits] & ~met:
            continue
        for left in {met & ~mark[bits], met}:  # another expert may have that width, too
            if after[expert + 1][left, used - bits] + table[expert, at] == after[expert][met, used]:
                return used - bits, left, bits
    raise AssertionError("a least cost without a plan")


@dataclass(frozen=True)
class BitPlan:
    """How many bits each expert of a model gets.

    Args:
        bits: of each decoder layer the bits of its experts; () for a dense layer.
        group: how many neighbours in a row of a weight share a scale.
    """

    bits: tuple[tuple[int, ...], ...]
    group: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", tuple(tuple(layer) for layer in self.bits))
        if not any(self.bits) or not all(isinstance(b, int) and 1 <= b <= 8 for layer in self.bits for b in layer):
            raise CompressionError("a plan has 1 to 8 bits, whole numbers, for each expert of at least one layer.")
        if not isinstance(self.group, int) or self.group < 1:
            raise CompressionError(f"group={self.group!r} must be a whole number, at least 1.")

    @property
    def mean(self) -> float:
        """Bits of an expert on average, scales not counted."""
        every = [bits for layer in self.bits for bits in layer]
        return sum(every) / len(every)

    def save(self, path: str | Path) -> None:
        """Write one JSON file, making its folder where needed.

        Raises:
            WriteError: when it cannot be written.
        """
        told = {"format": FORMAT, "version": VERSION, "software": MARK, **asdict(self)}
        write_bytes(Path(path), (json.dumps(told) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> BitPlan:
        """Read what `save` wrote.

        Raises:
            CompressionError: when the file is missing or is not such a plan.
        """
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
            known = told["format"] == FORMAT and told["version"] == VERSION
            found = cls(told["bits"], told["group"]) if known else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CompressionError(
                f"{path} is not a plan of bits ({error}); give a file that `BitPlan.save` wrote."
            ) from error
        if found is None:
            raise CompressionError(f"{path} is not a plan of bits of version {VERSION}; plan again.")
        return found
