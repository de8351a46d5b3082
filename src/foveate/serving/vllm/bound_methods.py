"""The methods that a server can use, made ready for its model once and tried out before an image depends on them."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ...errors import MethodError, ModelError
from ...grouping import select
from ...methods import Method, ModelFacts, Where, get_method
from ...methods.toolkit.in_encoder import InEncoder
from ...methods.toolkit.notes import Note, announce
from ...methods.toolkit.two_stage import HybridMethod
from ...tokens import Cue, Grid, Kind, Selection, Source, VisualTokens

_TRIED = (Grid(4, 4, 2), Grid(3, 2, 3))  # of different sizes, so that one is padded; clips, as some take nothing else
_INSIDE = (
    "prunes inside the LLM, which vLLM cannot do, because all its layers share one table of cache blocks; use a method "
    "that prunes before the LLM, such as 'idpruner', or run this one with foveate.prune in transformers."
)
_BOTH = (
    "works inside the LLM, too, where the plugin does nothing; {fix} run all of it with foveate.prune in transformers."
)
_OUTSIDE = "set its inside=False among the server's hyperparameters, or"


class BoundMethods:
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
            places = method.places(self._facts.layers)
            if Where.BEFORE_ENCODER in places:
                raise MethodError(
                    f"{name} prunes before the vision encoder, behind which the plugin prunes; use a method that "
                    "prunes before the LLM, such as 'idpruner', or run this one with foveate.prune in transformers."
                )
            if Where.INSIDE_ENCODER in places:
                raise MethodError(
                    f"{name} prunes inside the vision encoder, where only the server's own default does; use a method "
                    "that prunes before the LLM, such as 'idpruner', or run this one with foveate.prune in "
                    "transformers."
                )
            if Where.BEFORE_LLM not in places:
                raise MethodError(f"{name} {_INSIDE}")
            if Where.INSIDE_LLM in places and not isinstance(method, HybridMethod):
                raise MethodError(f"{name} {_BOTH.format(fix='choose another method, or')}")
            bound = method.bind(self._facts)
            for cue in sorted(bound.needs, key=lambda cue: cue.name):
                if cue in self._missing:
                    raise ModelError(f"{name} needs the {cue.value}, but {self._missing[cue]}")
            if Where.INSIDE_LLM in places:
                raise MethodError(f"{name} {_BOTH.format(fix=_OUTSIDE)}")
            _try(bound, self._facts.hidden_size)
            _announce_once(bound.note)
            self._ready[name] = bound
        return self._ready[name]

    def add_inside(self, stage: InEncoder, width: int, blocks: int, behind: bool) -> InEncoder:
        """A method inside the vision encoder, bound and tried; `get` finds it under its name.

        Args:
            stage: what is asked for.
            width: of the hidden states of the encoder.
            blocks: of the encoder.
            behind: whether another one comes before it.

        Raises:
            FoveateError: for one that cannot work in this server.
        """
        facts = replace(self._facts, vision_width=width, blocks=blocks)
        if stage.block >= blocks:
            raise MethodError(
                f"{stage.name} prunes at block {stage.block} of the vision encoder, but this model allows blocks 0 to "
                f"{blocks - 1}."
            )
        bound = stage.bind(facts)
        assert isinstance(bound, InEncoder)
        for cue in sorted(bound.needs, key=lambda cue: cue.name):
            if cue not in Cue.of(Source.ENCODER):
                raise MethodError(
                    f"{stage.name} needs the {cue.value}, which is not there yet inside the vision encoder; use it "
                    "before the LLM."
                )
            if cue in self._missing:
                raise ModelError(f"{stage.name} needs the {cue.value}, but {self._missing[cue]}")
        selection = _try(bound, width, behind)
        if selection.target is not None and type(selection).merged is not Selection.merged:
            raise MethodError(
                f"{stage.name} mixes tokens by a rule of its own, which the plugin cannot apply to patches; use a "
                "method that drops tokens, such as 'divprune'."
            )
        _announce_once(bound.note)
        self._ready[bound.name] = bound
        return bound

    def try_behind(self, name: str) -> None:
        """Raise FoveateError for a method that cannot choose among what others have left."""
        _try(self.get(name), self._facts.hidden_size, behind=True)


@functools.cache
def _announce_once(note: Note | None) -> None:
    """Log a note of a method; vLLM makes several processors and a model, each of which binds methods of its own."""
    announce([note])


def _try(method: Method, width: int, behind: bool = False) -> Selection:
    """Let the method choose once, so that a faulty one is refused here and not while a batch of others runs.

    While images are served on a GPU, nothing waits for it, and so nobody looks at how many tokens a method keeps.

    Args:
        method: bound.
        width: of the features.
        behind: whether other methods have left out tokens before.
    """
    on_host: Any = {"dtype": torch.float32, "device": "cpu"}  # while vLLM loads a model, the default is that model's
    random = torch.Generator().manual_seed(0)
    tokens = max(map(len, _TRIED))
    sizes = defaultdict(lambda: 32, N=tokens, d=width, D=width)

    def random_cue(cue: Cue) -> torch.Tensor:
        shape = (len(_TRIED), *cue.shape(sizes))
        if cue.kind is Kind.VECTOR:
            return torch.randn(shape, generator=random, **on_host)
        numbers = torch.rand(shape, generator=random, **on_host)
        return numbers < 0.5 if cue.kind is Kind.MASK else numbers.softmax(1)

    features = torch.randn(len(_TRIED), tokens, width, generator=random, **on_host)
    cues = {cue: random_cue(cue) for cue in sorted(method.needs, key=lambda cue: cue.name)}
    counts = [len(grid) // 2 for grid in _TRIED]
    alive = (torch.arange(tokens, device="cpu") % 4 != 1).expand(len(_TRIED), -1) if behind else None
    shown = VisualTokens(features, tuple((grid,) for grid in _TRIED), cues, alive=alive)
    selection = select(method, shown, torch.tensor(counts, device="cpu"), checked=False)
    for found, asked in zip(selection.keep.sum(1).tolist(), counts, strict=True):
        if found != asked:
            raise MethodError(f"{method.name} kept {found} tokens where {asked} were asked for.")
    return selection
