"""Evidence: with the question and without, one token after another by the rule it was trained with, several images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import foveate
from foveate.errors import MethodError
from foveate.importance.evidence_scorer import EvidenceScorer, EvidenceShape
from foveate.methods import ModelFacts, get_method
from foveate.models import adapter_of
from foveate.runtime.planner import facts_of
from foveate.testbed import load_shipped, shipped_models
from foveate.tokens import Cue, Grid, VisualTokens
from foveate.training.evidence.policy import pick
from tiny_models import Zoo, inputs, picture

D = 12
GRIDS = ((Grid(5, 4),), (Grid(3, 4),), (Grid(2, 3), Grid(2, 2)))  # the last row is two images with one budget


def made(width: int = D) -> EvidenceScorer:
    scorer = EvidenceScorer(EvidenceShape(width, 16, 2, 4)).requires_grad_(False)
    scorer.out.weight.normal_(generator=torch.Generator().manual_seed(1))
    return scorer


def tokens(seed: int = 0, words: int = 6) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(3, words, D, generator=torch.Generator().manual_seed(seed + words))
    there = torch.arange(words).flip(0) < torch.tensor([[words], [2], [3]])
    features = torch.randn(3, 20, D, generator=generator)
    return VisualTokens(features, GRIDS, text_embeddings=text, text_valid=there)


@pytest.mark.parametrize("question", [True, False])
@pytest.mark.parametrize("diversity", [None, 0.0, 1.5])
def test_it_picks_as_it_was_trained(question: bool, diversity: float | None) -> None:
    scorer = made()
    method = get_method("evidence", scorer=scorer, question=question, diversity=diversity).bind(ModelFacts("", D, 4))
    given, count = tokens(), torch.tensor([7, 3, 5])
    text = (given.text_embeddings, given.text_valid) if question else ()
    scores = scorer(given.features, given.valid, given.coordinates, *text)
    weight = torch.tensor(4.0 if diversity is None else diversity)  # 4 is what a scorer begins with
    picks = pick(scores, given.features, given.valid, count, weight, 7)
    keep = method.select(given, count).keep
    for row in range(3):
        assert keep[row].nonzero()[:, 0].tolist() == sorted(picks[row][picks[row] >= 0].tolist())


def test_the_blind_form_does_not_know_the_question() -> None:
    count = torch.tensor([6, 4, 4])
    asked, blind = (get_method("evidence", scorer=made(), question=question) for question in (True, False))
    assert asked.needs == {Cue.TEXT_EMBEDDINGS} and not blind.needs
    first, other = tokens(), tokens(words=5)
    assert torch.equal(first.features, other.features)
    assert torch.equal(blind.select(first, count).keep, blind.select(other, count).keep)
    assert (asked.scores(first) - asked.scores(other)).abs().max() > 0.01
    alone = VisualTokens(first.features, GRIDS)
    assert torch.equal(blind.select(alone, count).keep, blind.select(first, count).keep)


def test_a_loaded_scorer_is_used_whether_bound_or_not() -> None:
    given, count = tokens(), torch.tensor([7, 3, 5])
    method = get_method("evidence", scorer=made())
    assert torch.equal(method.select(given, count).keep, method.bind(ModelFacts("", D, 4)).select(given, count).keep)
    without = get_method("evidence", scorer=made(), diversity=0.0)
    assert not torch.equal(method.select(given, count).keep, without.select(given, count).keep)


def test_on_every_family_with_one_and_two_images(zoo: Zoo) -> None:
    scorer = made(facts_of(adapter_of(zoo.model)).hidden_size)
    batch = inputs(zoo, [[picture(112, 112, 0)], [picture(112, 112, 1), picture(112, 112, 2)]])
    for question in (True, False):
        with (
            torch.no_grad(),
            foveate.prune(zoo.model, "evidence", keep=0.25, scorer=scorer, question=question) as pruning,
        ):
            zoo.model(**batch)
        images = pruning.report().images
        assert [image.prompt for image in images] == [0, 1, 1]
        assert all(image.tokens == round(0.25 * image.tokens_before) for image in images)


def test_the_scorers_that_come_along_are_found() -> None:
    model, _ = load_shipped()
    bound = get_method("evidence").bind(facts_of(adapter_of(model)))
    assert bound.note is not None and "reads the question" in bound.note.text
    for folder in shipped_models().values():
        assert EvidenceScorer.load(folder).importance is not None


def test_without_a_scorer_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"comes without one; give scorer=.*foveate train evidence.*'idpruner'"):
        get_method("evidence").bind(ModelFacts("", D, 4))
    with pytest.raises(MethodError, match="for encoder:2"):
        get_method("evidence").bind(ModelFacts("", D, 4, vision_width=8).inside_encoder(2))
    with pytest.raises(MethodError, match=r"none is trained for layer:2, only for what enters the language"):
        foveate.AtLayer(get_method("evidence", scorer=made(), question=False), 2).bind(ModelFacts("", D, 4))
    with pytest.raises(MethodError, match="reads features of width 12"):
        get_method("evidence", scorer=made()).bind(ModelFacts("", 9, 4))
    with pytest.raises(MethodError, match="no such file"):
        get_method("evidence", scorer=tmp_path / "none").bind(ModelFacts("", D, 4))
    with pytest.raises(MethodError, match="not loaded yet"):
        get_method("evidence", scorer="x").select(tokens(), torch.tensor([2, 2, 2]))
