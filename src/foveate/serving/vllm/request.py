"""What is to be kept of an image, and how that travels to the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ...budget import Budget, Conversation, Scope
from ...errors import MethodError
from ...grouping import TokenGroups
from ...tokens import Grid
from .batch import groups_of

_BYTES = 96  # of a request on its way to the engine, without what the rest of its prompt adds
_DECAY = "conversation:"


@dataclass(frozen=True)
class InPrompt:
    """What the rest of a prompt makes of the request of one image.

    Args:
        image: names the image as the encoder sees it, whatever is kept of it.
        counts: how many tokens each of its groups keeps.
        text: ids of the text that the method reads; empty where it reads none.
        before: how many of these stand before the last token of each group.
    """

    image: str
    counts: tuple[int, ...]
    text: tuple[int, ...] = ()
    before: tuple[int, ...] = ()


@dataclass(frozen=True)
class PruneRequest:
    """A method by name and a budget, whose scope is ``"image"``, ``"frame"`` or a conversation.

    Args:
        query: what text-aware methods choose by: ``"prompt"``, the prompt's own text, or a text; None where they
            cannot be used.
        place: set for one image, where its tokens depend on more of the prompt than the image.
        encoder: how much each of the server's stages inside the vision encoder keeps, in the order of their blocks;
            empty where all patches go through it.
    """

    method: str
    budget: Budget
    query: str | None = None
    place: InPrompt | None = None
    encoder: tuple[float | int | str, ...] = ()

    def __str__(self) -> str:
        scope = self.budget.scope
        named = f"{_DECAY}{scope.decay}" if isinstance(scope, Conversation) else scope
        inside = f"|{','.join(map(str, self.encoder))}" if self.encoder else ""
        return f"{self.method}|{self.budget.keep}|{named}{inside}"

    @classmethod
    def parse(cls, text: str) -> PruneRequest:
        """The inverse of ``str(request)``, which leaves out `query` and `place`."""
        method, keep, scope, *inside = text.split("|")
        found = Conversation(float(scope.removeprefix(_DECAY))) if scope.startswith(_DECAY) else scope
        encoder = tuple(Budget(one).keep for of_stages in inside for one in of_stages.split(","))
        return cls(method, Budget(keep, found), encoder=encoder)  # type: ignore[arg-type]

    @property
    def reads_prompt(self) -> bool:
        """Whether what is kept of an image depends on the prompt around it, or on a question."""
        return self.query is not None or isinstance(self.budget.scope, Conversation)

    @property
    def clip_scope(self) -> Scope:
        """What is chosen from at once in a clip: all of it (``"image"``) or each ``"frame"``."""
        return "image" if isinstance(self.budget.scope, Conversation) else self.budget.scope

    def groups(self, grids: Sequence[Grid]) -> TokenGroups:
        """The groups of one image or clip with these grids, and how many tokens each keeps."""
        if self.place is None:
            groups = groups_of(grids, self.budget)
            if not self.encoder:
                return groups
            left = self.encoder_groups(grids, len(self.encoder) - 1).counts
            return replace(groups, counts=[min(both) for both in zip(groups.counts, left, strict=True)])
        return replace(groups_of(grids, Budget(1.0, self.clip_scope)), counts=list(self.place.counts))

    def encoder_groups(self, grids: Sequence[Grid], stage: int) -> TokenGroups:
        """The same at one of the stages inside the vision encoder: no more than the stages before it leave."""
        budgets = [Budget(keep, self.clip_scope) for keep in self.encoder[: stage + 1]]
        groups = groups_of(grids, budgets[-1])
        counts = [groups_of(grids, budget).counts for budget in budgets]
        return replace(groups, counts=[min(of_group) for of_group in zip(*counts, strict=True)])

    def to_tensor(self) -> Tensor:
        """The request as (96,) uint8, padded with zeros, because what travels with an image must be a tensor.

        Where the request is of an image in its prompt, `place` stands behind these bytes; `query` is left out.
        """
        data = str(self).encode()
        if len(data) > _BYTES:
            raise MethodError(f"the method name {self.method!r} is too long for a request; {_BYTES} bytes must do.")
        rest = b"" if self.place is None else json.dumps(asdict(self.place)).encode()
        return torch.frombuffer(bytearray(data.ljust(_BYTES, b"\0") + rest), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, data: Tensor) -> PruneRequest | None:
        """The inverse of `to_tensor`; zeros are no request."""
        given = bytes(data.tolist())
        text = given[:_BYTES].rstrip(b"\0").decode()
        if not text:
            return None
        request = cls.parse(text)
        if not (rest := given[_BYTES:]):
            return request
        told = json.loads(rest)
        place = InPrompt(told["image"], tuple(told["counts"]), tuple(told["text"]), tuple(told["before"]))
        return replace(request, place=place)


def no_request() -> Tensor:
    """What travels with an image that keeps all its tokens."""
    return torch.zeros(_BYTES, dtype=torch.uint8)
