"""What is to be kept of an image, and how that travels to the engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...budget import Budget
from ...errors import MethodError

_BYTES = 96  # of a request on its way to the engine; every image of a batch has the same number


@dataclass(frozen=True)
class PruneRequest:
    """A method by name and a budget; its scope is ``"image"`` or ``"frame"``."""

    method: str
    budget: Budget

    def __str__(self) -> str:
        return f"{self.method}|{self.budget.keep}|{self.budget.scope}"

    @classmethod
    def parse(cls, text: str) -> PruneRequest:
        """The inverse of ``str(request)``."""
        method, keep, scope = text.split("|")
        return cls(method, Budget(keep, scope))  # type: ignore[arg-type]

    def to_tensor(self) -> Tensor:
        """The request as (96,) uint8, padded with zeros, because what travels with an image must be a tensor."""
        data = str(self).encode()
        if len(data) > _BYTES:
            raise MethodError(f"the method name {self.method!r} is too long for a request; {_BYTES} bytes must do.")
        return torch.tensor([*data, *[0] * (_BYTES - len(data))], dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, data: Tensor) -> PruneRequest | None:
        """The inverse of `to_tensor`; zeros are no request."""
        text = bytes(data.tolist()).rstrip(b"\0").decode()
        return cls.parse(text) if text else None


def no_request() -> Tensor:
    """What travels with an image that keeps all its tokens."""
    return torch.zeros(_BYTES, dtype=torch.uint8)
