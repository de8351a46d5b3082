"""Untrained scorers for methods that cannot do without one."""

from __future__ import annotations

import torch

from foveate.importance.evidence_scorer import EvidenceScorer, EvidenceShape


def evidence_scorer(hidden_size: int) -> EvidenceScorer:
    """An evidence scorer whose evidence is not the same everywhere."""
    scorer = EvidenceScorer(EvidenceShape(hidden_size, width=8, layers=1, heads=2)).requires_grad_(False)
    scorer.out.weight.copy_(torch.linspace(-2, 2, 8)[None])
    return scorer
