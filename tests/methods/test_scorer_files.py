"""The scorers that authors published: found by the model's name, fetched only when asked for, and named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import foveate
from foveate.errors import MethodError
from foveate.importance import LearnedScorer, scorer_files
from foveate.methods import ModelFacts, get_method
from foveate.methods.toolkit.notes import Note, announce, silence_notes
from tiny_models import Zoo

SEVEN = ModelFacts("Qwen/Qwen2.5-VL-7B-Instruct", 8, 4)


def weights() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {
        f"visual.importance_scorer.{side}_proj.{kind}": torch.randn((4, 8) if kind == "weight" else 4)
        for side in "qk"
        for kind in ("weight", "bias")
    }


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A hub that gives the same scorer whatever is asked for, and what it was asked for."""
    save_file(weights(), tmp_path / "model.safetensors")
    log: list[tuple[str, str | None]] = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        log.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr(scorer_files, "snapshot_download", fetch)
    return log


@pytest.mark.parametrize(
    ("method", "model", "repository"),
    [
        ("idpruner", "Qwen/Qwen2.5-VL-7B-Instruct", "AngelSlim/Qwen2.5-VL-7B-Instruct-Selector"),
        ("idpruner", "/models/Qwen2.5-VL-3B-Instruct/", "AngelSlim/Qwen2.5-VL-3B-Instruct-Selector"),
        (
            "idpruner",
            "models--Qwen--Qwen2.5-VL-32B-Instruct/snapshots/abc",
            "AngelSlim/Qwen2.5-VL-32B-Instruct-Selector",
        ),
        ("visionselector", "qwen2.5-vl-7b-instruct", "JulietChoo/VisionSelector-Qwen2.5-VL-7B"),
    ],
)
def test_published_is_found_by_the_models_name(
    method: str, model: str, repository: str, asked: list[tuple[str, str | None]]
) -> None:
    bound = get_method(method, scorer="published").bind(ModelFacts(model, 8, 4))
    assert set(asked) == {(repository, None)}
    found = bound.scorer  # type: ignore[attr-defined]
    assert isinstance(found, LearnedScorer) and found.source == repository
    assert torch.equal(found.q_weight, weights()["visual.importance_scorer.q_proj.weight"])
    assert bound.note == Note(f"{method}: importance by the trained scorer {repository}.")
    asked.clear()
    get_method(method, scorer="published", revision="v2").bind(ModelFacts(model, 8, 4))
    assert set(asked) == {(repository, "v2")}


def test_nothing_is_fetched_unasked(asked: list[tuple[str, str | None]]) -> None:
    get_method("idpruner").bind(SEVEN)
    with pytest.raises(MethodError, match=r"scorer='published' to download AngelSlim/Qwen2.5-VL-7B-Instruct-Selector"):
        get_method("idpruner", importance="scorer").bind(SEVEN)
    with pytest.raises(MethodError, match=r"scorer='published' to download JulietChoo/VisionSelector-Qwen2.5-VL-7B"):
        get_method("visionselector").bind(SEVEN)
    assert not asked


@pytest.mark.parametrize("method", ["idpruner", "visionselector"])
@pytest.mark.parametrize("model", ["llava-hf/llava-1.5-7b-hf", "me/Qwen2.5-VL-7B-Instruct-tuned", ""])
def test_where_none_is_published(method: str, model: str, asked: list[tuple[str, str | None]]) -> None:
    facts = ModelFacts(model, 8, 4)
    sentence = f"no scorer is published for {facts.label}, only for Qwen2.5-VL-3B-Instruct.*train scorer"
    with pytest.raises(MethodError, match=sentence):
        get_method(method, scorer="published").bind(facts)
    assert not asked


def test_offline_it_says_which_repository_is_not_to_be_had() -> None:
    with pytest.raises(MethodError, match=r"scorer AngelSlim/Qwen2.5-VL-7B-Instruct-Selector: not a folder here, and"):
        get_method("idpruner", scorer="published").bind(SEVEN)


def test_a_scorer_of_another_width_is_refused(asked: list[tuple[str, str | None]]) -> None:
    with pytest.raises(MethodError, match=r"reads features of width 8, but .* has width 16"):
        get_method("idpruner", scorer="published").bind(ModelFacts(SEVEN.name_or_path, 16, 4))


def notes(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    found = [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "foveate"]
    caplog.clear()
    return found


def test_one_line_at_attach_says_which_importance_is_in_use(
    llava: Zoo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "foveate")
    with foveate.prune(llava.model, "idpruner", keep=0.5):
        ((level, text),) = notes(caplog)
    assert level == logging.WARNING  # shown unless logging is set up otherwise
    assert text.startswith("idpruner: this model comes without a trained scorer, so importance is the attention")
    assert text.endswith("make one with `foveate train scorer` and give scorer=<file, folder or hub id>.")
    with foveate.prune(llava.model, "idpruner", keep=0.5, importance="encoder_attention"):
        ((level, text),) = notes(caplog)
    assert level == logging.INFO and text.endswith("vision encoder, as asked for.")
    width = llava.model.config.text_config.hidden_size
    made = LearnedScorer(torch.randn(4, width), torch.randn(4), torch.randn(4, width), torch.randn(4), "mine")
    for method in ("idpruner", "visionselector"):
        with foveate.prune(llava.model, method, keep=0.5, scorer=made):
            assert notes(caplog) == [(logging.INFO, f"{method}: importance by the trained scorer mine.")]
    for others in ("divprune", ["fastv"]):
        with foveate.prune(llava.model, others, keep=0.5):
            assert notes(caplog) == []
    with foveate.prune(llava.model, "idpruner", keep=1.0):  # nothing is pruned, so no importance is in use
        assert notes(caplog) == []


def test_the_published_scorer_is_named_where_there_is_one() -> None:
    note = get_method("idpruner").bind(SEVEN).note
    assert (
        note is not None and "scorer='published' downloads AngelSlim/Qwen2.5-VL-7B-Instruct-Selector, or" in note.text
    )


def test_notes_of_wrapped_and_of_equal_methods(caplog: pytest.LogCaptureFixture) -> None:
    from foveate.methods.toolkit.at_layer import AtLayer

    wrapped = AtLayer(get_method("idpruner"), 1).bind(SEVEN)
    announce(one.note for one in (wrapped, wrapped, get_method("divprune").bind(SEVEN)))
    assert len(notes(caplog)) == 1
    with silence_notes():
        announce([wrapped.note])
    assert notes(caplog) == []
