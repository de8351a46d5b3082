"""The methods that a server can use, made ready for its model once and tried out before an image depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...errors import MethodError, ModelError
from ...methods import Method, ModelFacts, Stage, get_method
from ...methods.toolkit.notes import announce
from ...tokens import Cue, Grid, VisualTokens

_SMALL = Grid(4, 4, 2)
_INSIDE = (
    "prunes inside the LLM, which vLLM cannot do, because all its layers share one table of cache blocks; use a method "
    "that prunes before the LLM, such as 'idpruner', or run this one with foveate.prune in transformers."
)
_BOTH = (
    "works inside the LLM, too, where the plugin does nothing; set its inside=False among the server's "
    "hyperparameters, or run all of it with foveate.prune in transformers."
)


class MethodShelf:
    """Methods by name, bound to one model.

    Args:
        facts: of the model.
        missing: for each cue that the server cannot give, why it cannot.
        hyperparameters: for each method name the values of its fields.
    """

    def __init__(
        self, facts: ModelFacts, missing: Mapping[Cue, str], hyperparameters: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._facts, self._missing, self._hyperparameters = facts, missing, hyperparameters
        self._ready: dict[str, Method] = {}

    def get(self, name: str) -> Method:
        """The method under this name, bound and tried.

        Raises:
            FoveateError: for an unknown name, and for a method that cannot work in this server.
        """
        if name not in self._ready:
            method = get_method(name, **self._hyperparameters.get(name, {}))
            if method.stage is Stage.BEFORE_ENCODER:
                raise MethodError(
                    f"{name} prunes before the vision encoder, behind which the plugin prunes; use a method that "
                    "prunes before the LLM, such as 'idpruner', or run this one with foveate.prune in transformers."
                )
            if method.stage is Stage.IN_LLM:
                raise MethodError(f"{name} {_INSIDE}")
            bound = method.bind(self._facts)
            for cue in sorted(bound.needs, key=lambda cue: cue.name):
                if cue in self._missing:
                    raise ModelError(f"{name} needs the {cue.value}, but {self._missing[cue]}")
            if method.stage is Stage.BOTH:
                raise MethodError(f"{name} {_BOTH}")
            _try(bound, self._facts.hidden_size)
            announce([bound.note])
            self._ready[name] = bound
        return self._ready[name]


def _try(method: Method, width: int) -> None:
    """Let the method choose once, so that a faulty one is refused here and not while a batch of others runs."""
    random = torch.Generator().manual_seed(0)
    size, half = len(_SMALL), len(_SMALL) // 2
    single: Any = {"dtype": torch.float32, "device": "cpu"}  # while vLLM loads a model, the default is that model's
    tokens = VisualTokens.of(
        torch.randn(size, width, generator=random, **single),
        _SMALL,
        encoder_attention=torch.rand(size, generator=random, **single).softmax(0),
        encoder_features=torch.randn(size, 32, generator=random, **single),
    )
    kept = method.select(tokens, torch.tensor([half], device="cpu")).keep.sum().item()
    if kept != half:
        raise MethodError(f"{method.name} kept {kept} tokens where {half} were asked for.")
