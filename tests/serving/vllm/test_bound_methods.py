"""Methods are refused before an image depends on them, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from foveate import FoveateError
from foveate.methods import Method, ModelFacts
from foveate.methods.toolkit.base import Provenance
from foveate.methods.toolkit.registry import _METHODS as REGISTERED
from foveate.serving.vllm.bound_methods import BoundMethods
from foveate.tokens import Cue, Selection, VisualTokens
from surroundings import SURROUNDINGS, nothing_leaks

FACTS = ModelFacts("tiny", 64, 4)


def test_methods_are_bound_once_with_the_servers_hyperparameters() -> None:
    bound = BoundMethods(FACTS, {}, {"idpruner": {"balance": 0.75}})
    assert bound.get("idpruner").balance == 0.75  # type: ignore[attr-defined]
    assert bound.get("idpruner") is bound.get("idpruner")


def test_what_a_method_reads_is_told_once_in_a_process(caplog: pytest.LogCaptureFixture) -> None:
    facts = ModelFacts("told once", 64, 4)
    for _ in range(2):  # vLLM makes several processors and a model
        BoundMethods(facts, {}, {}).get("idpruner")
    (told,) = (one for one in caplog.records if "told once" in one.getMessage())
    assert told.name == "foveate"


@pytest.mark.parametrize("name", ["divprune", "visionzip", "idpruner"])
def test_methods_are_tried_out_in_float32_whatever_the_servers_dtype(name: str) -> None:
    for around in SURROUNDINGS:  # while vLLM loads a model, the default dtype is the model's
        with nothing_leaks(around):
            assert BoundMethods(FACTS, {}, {}).get(name).name == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fastv", "inside the LLM, which vLLM cannot do"),
        ("idprunner", "did you mean 'idpruner'"),
        ("idpruner", "needs the attention received inside the vision encoder, but it is compiled"),
        ("visionselector", "give scorer="),
    ],
)
def test_refusals(name: str, says: str) -> None:
    bound = BoundMethods(FACTS, {Cue.ENCODER_ATTENTION: "it is compiled."}, {})
    with pytest.raises(FoveateError, match=says):
        bound.get(name)
    assert bound.get("divprune").name == "divprune"


def test_a_method_that_misses_its_count_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class KeepsAll(Method):
        name = "keepsall"
        provenance = Provenance("none", "none")

        def select(self, tokens: VisualTokens, count: torch.Tensor) -> Selection:
            return Selection(tokens.valid)

    monkeypatch.setitem(REGISTERED, "keepsall", KeepsAll)
    with pytest.raises(FoveateError, match="kept 32 tokens where 16 were asked for"):
        BoundMethods(FACTS, {}, {}).get("keepsall")
