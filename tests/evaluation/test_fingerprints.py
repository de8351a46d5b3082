"""What a changed weight, scorer or prior does to the hashes that tell evaluations apart."""

from __future__ import annotations

import torch

from foveate.evaluation.fingerprints import hash_learned, hash_weights
from foveate.importance import AttentionPrior, LearnedScorer
from foveate.importance.evidence_scorer import EvidenceScorer, EvidenceShape
from foveate.methods import get_method
from foveate.methods.toolkit.base import ModelFacts

FACTS = ModelFacts("", 4, 6)


def test_every_weight_counts() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(100, 8), torch.nn.Linear(8, 8)).bfloat16()
    before = hash_weights(model)
    assert hash_weights(model) == before
    with torch.no_grad():
        model[0].weight[7, 99] += 1  # far behind the beginning
    assert hash_weights(model) != before


def test_what_was_learned_counts_where_it_is_read() -> None:
    def d2pruner(value: float) -> dict[str, str]:
        prior = AttentionPrior(torch.full((2, 3), value), 2, "", 1, "")
        return hash_learned([get_method("d2pruner", prior=prior), get_method("random")], FACTS)

    def idpruner(value: float) -> dict[str, str]:
        scorer = LearnedScorer(torch.ones(2, 4), torch.zeros(2), torch.ones(2, 4), torch.full((2,), value))
        return hash_learned([get_method("idpruner", scorer=scorer)], FACTS)

    assert d2pruner(1.0) == d2pruner(1.0) and set(d2pruner(1.0)) == {"d2pruner"}
    assert d2pruner(1.0) != d2pruner(2.0) and idpruner(0.0) != idpruner(1.0)
    assert hash_learned([get_method("d2pruner"), get_method("idpruner")], FACTS) == {}  # cannot run; has none


def test_an_evidence_scorer_counts_too() -> None:
    scorer = EvidenceScorer(EvidenceShape(4, width=8, heads=2))

    def learned() -> dict[str, str]:
        return hash_learned([get_method("evidence", scorer=scorer)], FACTS)

    before = learned()
    assert before.keys() == {"evidence"} and learned() == before
    with torch.no_grad():
        scorer.spread += 1
    assert learned() != before
