"""Evidence scorers: shapes, padding and neighbours that do not matter, files, and that they begin as idpruner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from foveate.errors import MethodError
from foveate.importance import LearnedScorer
from foveate.importance.evidence_scorer import (
    PARTS,
    SHIPPED,
    WORDS,
    EvidenceScorer,
    EvidenceShape,
    find_evidence,
)
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from tiny_models import Zoo

D = 12


def learned(seed: int = 0) -> LearnedScorer:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(6, D, generator=generator) for _ in range(2))
    return LearnedScorer(q, torch.zeros(6), k, torch.zeros(6))


@pytest.fixture
def scorer() -> EvidenceScorer:
    """With random evidence in the place of none."""
    made = EvidenceScorer(EvidenceShape(D, 16, 2, 4, 6), learned()).requires_grad_(False)
    made.out.weight.normal_(generator=torch.Generator().manual_seed(1))
    return made


def given(seed: int = 0, batch: int = 2, width: int = 20, words: int = 7) -> list[torch.Tensor]:
    """Features, valid, coordinates, text and valid text: the first row is full, others have padding on both."""
    generator = torch.Generator().manual_seed(seed)
    features, text = (
        torch.randn(batch, width, D, generator=generator),
        torch.randn(batch, words, D, generator=generator),
    )
    sizes = torch.tensor([width, *([12] * (batch - 1))])
    lengths = torch.tensor([words, *([3] * (batch - 1))])
    coordinates = torch.stack([torch.zeros(width), torch.arange(width) // 4, torch.arange(width) % 4], -1).long()
    valid, text_valid = torch.arange(width) < sizes[:, None], torch.arange(words).flip(0) < lengths[:, None]
    return [features, valid, coordinates.expand(batch, -1, -1), text, text_valid]


def test_rows_do_not_depend_on_padding_or_neighbours(scorer: EvidenceScorer) -> None:
    features, valid, coordinates, text, there = given()
    scores = scorer(features, valid, coordinates, text, there)
    assert scores.shape == (2, 20) and scores.dtype == torch.float32
    assert (scores[1, 12:] == 0).all() and scores[1, :12].std() > 0.1
    alone = scorer(features[1:, :12], valid[1:, :12], coordinates[1:, :12], text[1:, -3:])
    torch.testing.assert_close(alone[0], scores[1, :12], rtol=1e-4, atol=1e-4)
    features[1, 12:], text[1, :4] = 99.0, -99.0
    torch.testing.assert_close(scorer(features, valid, coordinates, text, there), scores, rtol=1e-4, atol=1e-4)
    # Padding of the text may lie on the right, too.
    text[1], there[1] = text[1].roll(3, 0), there[1].roll(3, 0)
    torch.testing.assert_close(scorer(features, valid, coordinates, text, there), scores, rtol=1e-4, atol=1e-4)


def test_a_row_without_words_is_one_of_no_question(scorer: EvidenceScorer) -> None:
    features, valid, coordinates, text, there = given()
    blind = scorer(features, valid, coordinates)
    none = scorer(features, valid, coordinates, text, torch.zeros_like(there))
    torch.testing.assert_close(none, blind, rtol=1e-4, atol=1e-4)
    mixed = scorer(features, valid, coordinates, text, there & torch.tensor([[True], [False]]))
    torch.testing.assert_close(mixed[1], blind[1], rtol=1e-4, atol=1e-4)
    assert (mixed[0] - blind[0]).abs().max() > 0.1


def test_places_and_the_order_of_words_count_and_the_last_words_are_read(scorer: EvidenceScorer) -> None:
    features, valid, coordinates, text, _ = given(batch=1)
    scores = scorer(features, valid, coordinates, text)
    assert (scorer(features, valid, coordinates.flip(1), text) - scores).abs().max() > 1e-2
    assert (scorer(features, valid, coordinates, text.flip(1)) - scores).abs().max() > 1e-2
    long = torch.randn(1, WORDS, D, generator=torch.Generator().manual_seed(4))
    before = torch.cat([torch.randn(1, 9, D), long], 1)
    torch.testing.assert_close(
        scorer(features, valid, coordinates, before), scorer(features, valid, coordinates, long), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("question", [True, False])
def test_it_begins_as_idpruner(question: bool) -> None:
    """Without evidence, and with pull and spread alike, the choice is idpruner's at balance 0.5."""
    base = learned(3)
    fresh = EvidenceScorer(EvidenceShape(D, 16, 2, 4, 6), base)
    features, _, _, text, there = given(batch=3)
    grids = ((Grid(5, 4),), (Grid(3, 4),), (Grid(3, 4),))
    tokens = VisualTokens(features, grids, text_embeddings=text, text_valid=there)
    count = torch.tensor([7, 4, 11])
    ours = get_method("evidence", scorer=fresh, question=question).select(tokens, count).keep
    theirs = get_method("idpruner", scorer=base, balance=0.5).select(tokens, count).keep
    assert torch.equal(ours, theirs)


def test_saved_and_loaded_it_is_the_same(scorer: EvidenceScorer, tmp_path: Path) -> None:
    scorer.save(tmp_path / "evidence.safetensors")
    scorer.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "evidence.safetensors").read_bytes()
    for path in (tmp_path / "evidence.safetensors", tmp_path):
        loaded = EvidenceScorer.load(path)
        assert loaded.shape == scorer.shape and not any(one.requires_grad for one in loaded.parameters())
        assert torch.equal(loaded(*given()), scorer(*given()))
    assert find_evidence(str(tmp_path)) is None and find_evidence("") is None
    scorer.save(tmp_path / SHIPPED)
    found = find_evidence(str(tmp_path))
    assert found is not None and torch.equal(found(*given()), scorer(*given()))
    assert {name.partition(".")[0] for name in scorer.state_dict()} == PARTS


def test_without_an_importance_there_is_evidence_alone() -> None:
    made = EvidenceScorer(EvidenceShape(D, 16, 1, 2))
    assert made.importance is None and (made(*given()) == 0).all()


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="no such file; give one that `foveate train evidence` wrote"):
        EvidenceScorer.load(tmp_path / "none.safetensors")
    scorer = learned()
    names = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
    tensors = (scorer.q_weight, scorer.q_bias, scorer.k_weight, scorer.k_bias)
    save_file(dict(zip(names, tensors, strict=True)), tmp_path / "scorer.safetensors")
    with pytest.raises(MethodError, match="holds an importance scorer"):
        EvidenceScorer.load(tmp_path / "scorer.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(MethodError, match="no evidence scorer"):
        EvidenceScorer.load(tmp_path / "x.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(MethodError, match="is damaged"):
        EvidenceScorer.load(tmp_path / "broken.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "y.safetensors", {"foveate-evidence": '{"hidden_size": 4}'})
    with pytest.raises(MethodError, match="is damaged"):
        EvidenceScorer.load(tmp_path / "y.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "z.safetensors", {"foveate-evidence": '{"hidden_size": -1}'})
    with pytest.raises(MethodError, match=r"z\.safetensors is damaged"):
        EvidenceScorer.load(tmp_path / "z.safetensors")
    diverged = EvidenceScorer(EvidenceShape(D, 16, 1, 2))
    with torch.no_grad():
        diverged.spread.fill_(torch.nan)
    diverged.save(tmp_path / "nan.safetensors")
    with pytest.raises(MethodError, match="spread holds values not finite"):
        EvidenceScorer.load(tmp_path / "nan.safetensors")
    with pytest.raises(MethodError, match="no such file"):
        EvidenceScorer.load("~nobody-at-all/x")


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(MethodError, match="heads must divide the width"):
        EvidenceShape(D, 16, 1, 3)
    with pytest.raises(MethodError, match="does not fit"):
        EvidenceScorer(EvidenceShape(D, 16, 1, 2, 5), learned())
    with pytest.raises(MethodError, match=f"width {D}, but the model has width 7"):
        EvidenceScorer(EvidenceShape(D, 16, 1, 2)).check(7)


def test_its_tensors_are_named_as_no_model_names_its_own(zoo: Zoo) -> None:
    """So that servers, which read every file beside a model, can leave them out."""
    assert not PARTS & {name.partition(".")[0] for name in zoo.model.state_dict()}
