"""Methods by careless authors are refused by a sentence, and leave the model as it was."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import foveate
from foveate import AtLayer, Budget, Cue, MethodError, Selection, Stage, VisualTokens, Where
from foveate.methods import Method
from foveate.selection import topk
from runtime.helpers import logits, single
from tiny_models import Zoo


@dataclass(frozen=True)
class Largest(Method):
    """A sound one."""

    name = "largest"

    def select(self, tokens: VisualTokens, count: torch.Tensor) -> Selection:
        return Selection(topk(tokens.features.float().norm(dim=-1), count, valid=tokens.valid))


def hooks(model: torch.nn.Module) -> int:
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"needs": [Cue.ENCODER_ATTENTION]}, "must be a set of cues"),
        ({"needs": Cue.ENCODER_ATTENTION}, "must be a set of cues"),
        ({"needs": frozenset({"encoder_attention"})}, "must be a set of cues"),
        ({"where": "inside the LLM"}, "give a foveate.Where"),
        ({"where": Where.INSIDE_LLM, "layer": None}, "layer=None is not a layer"),
        ({"where": Where.INSIDE_LLM, "layer": "1"}, "layer='1' is not a layer"),
        ({"where": Where.INSIDE_LLM}, "prunes at layer -1"),
        ({"stages": lambda self, layers, budget: []}, "at least one"),
        ({"stages": lambda self, layers, budget: None}, "its stages are None"),
        ({"stages": lambda self, layers, budget: [self]}, "must be a list of foveate.Stage"),
        ({"stages": lambda self, layers, budget: [Stage.before_llm(self, 0.5)]}, "a Method and a Budget"),
        ({"stages": lambda self, layers, budget: [Stage.inside_llm("fastv", 1, budget)]}, "a Method and a Budget"),
        ({"stages": lambda self, layers, budget: [Stage(self, Where.BEFORE_LLM, 2, budget)]}, "has layer=0, not 2"),
    ],
)
def test_refused(own: dict[str, Any], says: str, llava: Zoo) -> None:
    method = type("Careless", (Largest,), own)()
    before = hooks(llava.model)
    with pytest.raises(MethodError, match=says):
        foveate.prune(llava.model, method, keep=0.5)
    assert hooks(llava.model) == before
    with foveate.prune(llava.model, "divprune", keep=0.5):
        pass


@pytest.mark.parametrize("counts", [[3], 3, torch.tensor([True]), torch.tensor([3.0]), torch.tensor(3), None])
def test_counts(counts: Any, llava: Zoo) -> None:
    method = type("Careless", (Largest,), {"counts": lambda self, tokens: counts})()
    with (
        foveate.prune(llava.model, method, keep="auto"),
        pytest.raises(MethodError, match="must give one whole number"),
    ):
        logits(llava, single(llava))


def test_a_note_that_cannot_be_logged_leaves_the_model_as_it_was(llava: Zoo) -> None:
    before = hooks(llava.model)
    with pytest.raises(AttributeError):
        foveate.prune(llava.model, type("Careless", (Largest,), {"note": "a text"})(), keep=0.5)
    assert hooks(llava.model) == before

    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space left")

    logger, handler = logging.getLogger("foveate"), Full(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(OSError, match="no space left"):
            foveate.prune(llava.model, foveate.get_method("idpruner"), keep=0.5)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert hooks(llava.model) == before
    foveate.prune(llava.model, "divprune", keep=0.5).detach()


def test_a_method_is_moved_by_its_name_too() -> None:
    moved = AtLayer("divprune", 2)
    assert moved == AtLayer(foveate.get_method("divprune"), 2) and moved.stages(4, Budget(0.5))[0].layer == 2
    for wrong, says in (("divprun", "did you mean"), (None, "is not a method"), (foveate.methods.DivPrune, "is not a")):
        with pytest.raises(MethodError, match=says):
            AtLayer(wrong, 2)  # type: ignore[arg-type]


def test_counts_beyond_floats(llava: Zoo) -> None:
    with foveate.prune(llava.model, "divprune", keep=10**400) as pruning:
        logits(llava, single(llava))
        assert pruning.report().tokens == pruning.report().tokens_before
