"""Budget: how many visual tokens to keep, known from counts alone unless it is ``"auto"``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import BudgetError

AUTO = "auto"
AUTO_HELP = ", or 'auto' to count by what each image shows"  # of no use where counts must be known before
_HELP = (
    "Give a fraction in (0, 1] such as 0.25, a percentage such as '25%' or a token count of at least 2 such as 144"
    + AUTO_HELP
)


@dataclass(frozen=True)
class Conversation:
    """The scope of a budget that all images of a prompt share by age: the newest counts most.

    Each older image is to keep `decay` times the share of the next newer one, and none more than all that it has. So
    with halves the newest is whole from a budget of about two images on, however long the history is.

    Examples:
        >>> foveate.Budget(0.25, foveate.Conversation(decay=0.5)).split([100, 100, 100, 100])
        [6, 13, 27, 54]
        >>> foveate.Budget(0.6, "conversation").split([100, 100, 100, 100])
        [20, 40, 80, 100]

    Args:
        decay: in (0, 1].

    Raises:
        BudgetError: for a `decay` out of range.
    """

    decay: float = 0.5

    def __post_init__(self) -> None:
        number = isinstance(self.decay, (int, float)) and not isinstance(self.decay, bool)
        if not number or not 0 < self.decay <= 1:
            raise BudgetError(f"decay={self.decay!r} is out of range; give a number in (0, 1], such as 0.5.")

    def shares(self, sizes: Sequence[int], total: int) -> list[int]:
        """How many tokens each image keeps.

        Args:
            sizes: tokens of each image, the oldest first.
            total: tokens that all keep together, or more where each could not keep one of them.
        """
        weights = [self.decay**age * size for age, size in zip(reversed(range(len(sizes))), sizes, strict=True)]
        whole: set[int] = set()
        while True:  # images that would keep more than they have are whole, and the others share what is left
            left = total - sum(sizes[index] for index in whole)
            among = sum(weight for index, weight in enumerate(weights) if index not in whole)
            scale = left / among if among else 0.0
            full = {i for i, size in enumerate(sizes) if i not in whole and scale * weights[i] >= size}
            if not full:
                break
            whole |= full
        exact = [size if i in whole else scale * weights[i] for i, size in enumerate(sizes)]
        counts = [min(size, max(1, math.floor(share))) for share, size in zip(exact, sizes, strict=True)]
        for index in reversed(range(len(sizes))):  # what rounding down left goes to the newest, so that none keeps less
            if sum(counts) < total and counts[index] < sizes[index]:
                counts[index] += 1
        return counts


Scope = Literal["image", "frame", "prompt"] | Conversation
ScopeLike = Scope | Literal["conversation"]  # with halves


@dataclass(frozen=True, init=False)
class Budget:
    """How much to keep of each image (or, with ``scope="prompt"``, of all images of a prompt together).

    Examples:
        >>> Budget("25%").count(576)
        144
        >>> Budget(64, scope="prompt")
        Budget(keep=64, scope='prompt')

    Args:
        keep: a float in (0, 1] or a percentage string (a fraction), or an int of at least 2 (tokens); scalars of
            NumPy and PyTorch count as these. Strings may also spell a fraction (``"0.25"``) or a count (``"144"``).
            The int 1 is refused, because it could mean one token or everything. ``"auto"`` counts by what an image
            shows, see `Budget.auto`. Another `Budget` stands for itself.
        scope: ``"image"`` counts each image or clip alone, ``"frame"`` each frame of a clip, ``"prompt"`` pools them;
            ``"conversation"``, or a `Conversation`, pools them, too, but newer images keep more.
            None is the scope of the budget that is given as `keep`, else ``"image"``.

    Raises:
        BudgetError: when `keep` or `scope` is anything else, or `scope` is not that of the budget given as `keep`.
    """

    keep: float | int | str
    scope: Scope = "image"

    def __init__(self, keep: float | int | str | Budget, scope: ScopeLike | None = None) -> None:
        scope = Conversation() if scope == "conversation" else scope
        if isinstance(keep, Budget):
            if type(keep) is not Budget:
                raise BudgetError(f"{keep} is what one stage of a schedule leaves, which cannot be asked for. {_HELP}.")
            scope, keep = common_scope([keep], scope), keep.keep
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "scope", "image" if scope is None else scope)
        self.__post_init__()

    def __post_init__(self) -> None:  # also of subclasses, whose fields are more
        if not isinstance(self.scope, Conversation) and self.scope not in _SCOPES:
            raise BudgetError(f"scope={self.scope!r} is unknown; use 'image', 'frame' or 'prompt', or 'conversation'.")
        object.__setattr__(self, "keep", _parse(self.keep))
        if isinstance(self.scope, Conversation) and self.by_content:
            raise BudgetError(
                "keep='auto' counts image by image, while images of a conversation share a budget; give a fraction "
                "such as keep=0.25, or another scope."
            )

    @staticmethod
    def auto(
        floor: float | str | None = None, similarity: float | str | None = None, scope: ScopeLike | None = None
    ) -> Budget:
        """As many tokens of each image as differ, known only when the image is encoded; the same as ``"auto"``.

        Methods that have a rule of their own, such as ``sms`` and ``pixelprune``, count by that. For all other methods
        before the LLM each token counts one divided by how many tokens are similar to it, itself included: three groups
        of equal tokens count 3, however large they are (see `foveate.methods.toolkit.count_distinct`). A page of text
        so keeps more than a photo of a few things.

        Examples:
            >>> foveate.Budget.auto(floor=0.2)
            Budget(keep='auto:floor=0.2', scope='image')
            >>> foveate.Budget("auto:floor=20%") == foveate.Budget.auto(floor=0.2)
            True
            >>> with foveate.prune(model, "idpruner", keep=foveate.Budget.auto(floor="5%")):
            ...     output = model.generate(**inputs, max_new_tokens=4)

        Args:
            floor: the smallest share of an image's unpruned tokens that stays, in [0, 1); None: 0.1, and nothing where
                the method has a rule of its own.
            similarity: the cosine from which on two tokens are similar, in (0, 1]; None: 0.8. A higher one keeps more.
                Methods that have a rule of their own refuse it.
            scope: as for `Budget`; not a conversation, whose images share a budget.

        Raises:
            BudgetError: for values out of range.
        """
        given = {"floor": plain_scalar(floor), "similarity": plain_scalar(similarity)}
        return Budget(
            ":".join([AUTO, *(f"{name}={value}" for name, value in given.items() if value is not None)]), scope
        )

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever dropped, whatever the image."""
        return self.keep == 1.0

    @property
    def by_content(self) -> bool:
        """Whether an image's content decides, so that counts are not known before it is encoded."""
        return isinstance(self.keep, str)

    @property
    def floor(self) -> float | None:
        """The smallest share that stays where content decides, if one was given."""
        return _auto_fields(self.keep).get("floor")

    @property
    def similarity(self) -> float | None:
        """The cosine from which on tokens are similar where content decides, if one was given."""
        return _auto_fields(self.keep).get("similarity")

    def least(self, tokens: int, floor: float = 0.0) -> int:
        """Tokens kept of `tokens` at least where content decides, with a `floor` in place of one that was not given."""
        share = floor if self.floor is None else self.floor
        return min(tokens, max(1, round_half_up(share * tokens))) if share and tokens else 0

    def at_layers(self, starts: Mapping[int, int], layers: int) -> Budget:
        """This budget where the stages of its method begin at other of a model's `layers`; itself in most.

        Args:
            starts: by the place of a stage in the method's schedule, those left out that fell together with the next,
                the layer whose input it shortens.
            layers: of the language model.
        """
        return self

    def count(self, tokens: int) -> int:
        """Tokens kept of `tokens`: ``max(1, floor(keep * n + 0.5))`` for a fraction, never more than n.

        By content it is the upper bound n.
        """
        if tokens <= 0:
            return 0
        if self.by_content:
            return tokens
        if isinstance(self.keep, float):
            return min(tokens, max(1, round_half_up(self.keep * tokens)))
        return min(tokens, int(self.keep))

    def counts(self, sizes: Sequence[int]) -> list[int]:
        """Tokens kept of each pool of `sizes`."""
        return [self.count(size) for size in sizes]

    def split(self, sizes: Sequence[int]) -> list[int]:
        """Tokens kept of each image of one prompt, the oldest first, where they share the budget by age."""
        if not isinstance(self.scope, Conversation):
            return self.counts(sizes)
        return self.scope.shares(sizes, self.count(sum(sizes))) if sizes else []

    @property
    def label(self) -> str:
        """The budget as tables write it: ``25%``, a number of tokens, ``auto`` or ``auto:floor=0.2``."""
        return f"{100 * self.keep:.4g}%" if isinstance(self.keep, float) else str(self.keep)

    def __str__(self) -> str:
        if isinstance(self.keep, str):
            return self.keep
        return f"{self.keep:.4g}" if isinstance(self.keep, float) else f"{self.keep} tokens"


def round_half_up(number: float) -> int:
    """The whole number nearest to one that is not negative; halves go up, as counts of tokens do everywhere."""
    return math.floor(number + 0.5)


_SCOPES = ("image", "frame", "prompt")


def common_scope(keeps: Iterable[object], scope: ScopeLike | None = None) -> Scope:
    """The one scope of what is kept.

    Args:
        keeps: budgets, and values that are none and have no scope.
        scope: what was asked for beside them, if anything.

    Returns:
        That of the budgets, or `scope`; ``"image"`` where neither says.

    Raises:
        BudgetError: where two of them differ.
    """
    scope = Conversation() if scope == "conversation" else scope
    for budget in keeps:
        if not isinstance(budget, Budget):
            continue
        if scope is not None and scope != budget.scope:
            raise BudgetError(
                f"scope={scope!r} and {budget!r} contradict each other; give the scope once, in the budget or "
                "beside it."
            )
        scope = budget.scope
    return "image" if scope is None else scope


def _parse(keep: object) -> float | int | str:
    if isinstance(keep, str):
        if keep.partition(":")[0].strip() == AUTO:
            return _parse_auto(keep.strip())
        keep = _from_text(keep)
    keep = plain_scalar(keep)
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise BudgetError(f"keep={keep!r} is not a budget. {_HELP}.")
    if isinstance(keep, int):
        if keep == 1:
            raise BudgetError("keep=1 is ambiguous: write 1.0 to keep everything, or a count of at least 2 tokens.")
        if keep < 2:
            raise BudgetError(f"keep={keep} keeps nothing. {_HELP}.")
        return keep
    if not 0.0 < keep <= 1.0:  # also refuses NaN
        raise BudgetError(f"keep={keep} is out of range. {_HELP}.")
    return float(keep)


def _parse_auto(text: str) -> str:
    """``auto`` with its fields in one spelling, so that equal budgets are equal."""
    found: dict[str, float] = {}
    for part in text.split(":")[1:]:
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in ("floor", "similarity") or name in found:
            raise BudgetError(
                f"keep={text!r} is not a budget; write it as 'auto:floor=10%:similarity=0.8', either field."
            )
        try:
            found[name] = float(_from_text(value))
        except BudgetError:
            raise BudgetError(f"{name}={value!r} is not a number; write for example keep='auto:{name}=0.8'.") from None
    if not 0 <= found.get("floor", 0.0) < 1:
        raise BudgetError(f"floor={found['floor']} is out of range; give a share from 0 to below 1, such as 0.1.")
    if not 0 < found.get("similarity", 1.0) <= 1:
        raise BudgetError(f"similarity={found['similarity']} is out of range; give a cosine in (0, 1], such as 0.8.")
    return ":".join([AUTO, *(f"{name}={found[name]}" for name in ("floor", "similarity") if name in found)])


def _auto_fields(keep: float | int | str) -> dict[str, float]:
    """The fields of what `_parse_auto` made, by name; none of other budgets."""
    parts = keep.split(":")[1:] if isinstance(keep, str) else []
    return {name: float(value) for name, _, value in (part.partition("=") for part in parts)}


def plain_scalar(value: object) -> object:
    """Scalars of NumPy and PyTorch as Python's own; everything else as it is.

    A float of less than 64 bits becomes the decimal that it stands for: 0.7, not 0.699999988.
    """
    if getattr(value, "shape", None) != () or not callable(item := getattr(value, "item", None)):
        return value
    plain = item()
    return float(f"{plain:.6g}") if isinstance(plain, float) and "float64" not in str(value.dtype) else plain  # type: ignore[attr-defined]


def _from_text(text: str) -> float | int:
    stripped = text.strip()
    try:
        if stripped.endswith("%"):
            return float(stripped[:-1]) / 100.0
        return int(stripped) if stripped.lstrip("+-").isdigit() else float(stripped)
    except ValueError:
        raise BudgetError(f"keep={text!r} is not a number. {_HELP}.") from None
