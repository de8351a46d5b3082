"""What a request asks for, where the server's defaults come from, and how both travel to the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...budget import Budget, Scope
from ...errors import BudgetError, MethodError, RequestError, near_miss
from ...models.adapter import MOST_QUERIES, checked_queries

REQUEST_KEYS = ("foveate_method", "foveate_keep", "foveate_scope")
SETTINGS = {"method": "FOVEATE_METHOD", "keep": "FOVEATE_KEEP", "scope": "FOVEATE_SCOPE"}
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


@dataclass(frozen=True)
class ServerSettings:
    """The server's defaults, from ``--hf-overrides '{"foveate": {...}}'`` and from the environment.

    Args:
        method: the method of requests that name none.
        keep: the budget of requests that give none; 1.0 prunes nothing.
        scope: the scope of requests that give none; None leaves it to the model family.
        hyperparameters: for each method name the values of its fields. Requests choose among methods but cannot set
            hyperparameters, because some of them name files.
        encoder_queries: as for `foveate.prune`; of all requests.
    """

    method: str = "idpruner"
    keep: Any = 1.0
    scope: str | None = None
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    encoder_queries: int = MOST_QUERIES

    def __post_init__(self) -> None:
        checked_queries(self.encoder_queries)

    @classmethod
    def read(cls, overrides: Any, environ: Mapping[str, str]) -> ServerSettings:
        """From the value of the key ``foveate`` in the overrides (or None), which has precedence, and `environ`.

        Raises:
            FoveateError: for a key that is not known or a value that cannot be.
        """
        given = {} if overrides is None else overrides
        if not isinstance(given, Mapping):
            raise RequestError(
                f"the server's foveate settings {given!r} must be a mapping such as "
                '{"method": "idpruner", "keep": 0.25}.'
            )
        known = [*SETTINGS, "hyperparameters", "encoder_queries"]
        for key in given:
            if key not in known:
                raise RequestError(f"the server's foveate settings have an unknown key {key!r}{near_miss(key, known)}")
        from_environ = {key: environ[name] for key, name in SETTINGS.items() if environ.get(name)}
        settings = cls(**(from_environ | dict(given)))
        settings.resolve({})  # refuses bad values
        return settings

    def resolve(self, asked: Mapping[str, Any], default_scope: Scope = "image") -> PruneRequest | None:
        """What to do for a request with these keyword arguments; None when everything is kept.

        Raises:
            FoveateError: for a value that cannot be.
        """
        for key in asked:
            if key.startswith("foveate") and key not in REQUEST_KEYS:
                raise RequestError(f"unknown argument {key!r}{near_miss(key, REQUEST_KEYS)}")
        method = asked.get("foveate_method", self.method)
        keep = asked.get("foveate_keep", self.keep)
        scope: Any = asked.get("foveate_scope", self.scope) or default_scope
        if not isinstance(method, str):
            raise MethodError(f"foveate_method={method!r} must be the name of one method, such as 'idpruner'.")
        if scope not in ("image", "frame"):
            raise BudgetError(f"foveate_scope={scope!r} is unknown; use 'image' or 'frame'.")
        budget = Budget(keep, scope)
        if budget.by_content:
            raise BudgetError(
                "keep='auto' finds how many tokens stay when an image is encoded, but vLLM needs to know before; give "
                "a fraction such as 0.25 or a token count such as 144."
            )
        if budget.keeps_all:
            if "foveate_method" in asked and "foveate_keep" not in asked:
                raise BudgetError(
                    f"foveate_method={method!r} is given, but not how much to keep; add foveate_keep, such as 0.25."
                )
            return None
        return PruneRequest(method, budget)

    def fingerprint(self, request: PruneRequest) -> dict[str, str]:
        """What tells this request's images from the same images pruned otherwise, in every cache of the server."""
        made = {"foveate": str(request)}
        if values := self.hyperparameters.get(request.method):
            made["foveate_hyperparameters"] = json.dumps(values, sort_keys=True, default=str)
        if self.encoder_queries != MOST_QUERIES:
            made["foveate_encoder_queries"] = str(self.encoder_queries)
        return made
