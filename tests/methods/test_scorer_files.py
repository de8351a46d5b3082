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


def scorer(folder: Path, name: str = "scorer.safetensors", card: str = "") -> Path:
    """A scorer of width 8 in a file of its own, with what its training wrote beside it."""
    folder.mkdir(exist_ok=True)
    save_file({key.rpartition("scorer.")[2]: tensor for key, tensor in weights().items()}, folder / name)
    if card:
        (folder / "training.json").write_text(card)
    return folder / name


@pytest.mark.parametrize("method", ["idpruner", "visionselector"])
def test_a_scorer_is_used_where_it_was_trained_for(method: str, tmp_path: Path) -> None:
    facts = ModelFacts("", 8, 4, vision_width=8)
    encoder, other, layer = facts.inside_encoder(1), facts.inside_encoder(2), facts.inside_llm(2)
    assert facts.inside_llm(0) == facts
    before = scorer(tmp_path / "before", card='{"gate": "attention"}')
    inside = scorer(tmp_path / "inside", card='{"gate": "attention", "at": "encoder:1"}')
    named = scorer(tmp_path / "named", "foveate-scorer-encoder-1.safetensors")
    unknown = scorer(tmp_path / "unknown", card='{"answers": 3}')
    for path, place in [(before, facts), (inside, encoder), (named, encoder), (unknown, facts), (unknown, encoder)]:
        get_method(method, scorer=path).bind(place)
    everything, llm = "what enters the language model", "use it there"
    for path, place, of, fix in [
        (before, encoder, everything, "--at encoder:1"),
        (inside, facts, "encoder:1", llm),
        (inside, other, "encoder:1", "--at encoder:2"),
        (named, facts, "encoder:1", llm),
        (before, layer, everything, llm),
        (unknown, layer, everything, llm),
    ]:
        with pytest.raises(MethodError, match=f"was trained for {of}, not for {place.at or everything}; .*{fix}"):
            get_method(method, scorer=path).bind(place)
    own = LearnedScorer(torch.ones(4, 8), torch.ones(4), torch.ones(4, 8), torch.ones(4), at="layer:2")
    foveate.AtLayer(get_method(method, scorer=own), 2).bind(facts)
    with pytest.raises(MethodError, match=r"was trained for layer:2, not for layer:1"):
        foveate.AtLayer(get_method(method, scorer=own), 1).bind(facts)


def test_a_models_own_scorer_is_not_taken_for_one_of_its_layers(tmp_path: Path) -> None:
    scorer(tmp_path, "foveate-scorer.safetensors")
    facts = ModelFacts(str(tmp_path), 8, 4)
    assert get_method("idpruner").bind(facts).scorer is not None  # type: ignore[attr-defined]
    note = foveate.AtLayer("idpruner", 2).bind(facts).note
    assert note is not None and note.level == logging.WARNING
    assert note.text.endswith("scorers are trained for what enters the language model, so use the method there.")
    with pytest.raises(MethodError, match=r"at layer:2 comes without one; scorers are trained for what enters"):
        foveate.AtLayer("visionselector", 2).bind(facts)
