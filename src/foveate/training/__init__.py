"""Training: learned scorers for any supported model, and the models of the testbed."""

from .checkpoint import TrainingError
from .evidence.learner import EvidenceExample, EvidenceLog, evidence_example_of
from .evidence.recipe import EvidenceRecipe
from .evidence.trainer import train_evidence
from .scorer.data import Example, example_of
from .scorer.folder import StepLog
from .scorer.imitation import ImitationLog
from .scorer.model import TrainableScorer
from .scorer.recipe import ScorerRecipe
from .scorer.soft_topk import soft_topk
from .scorer.trainer import make_accelerator, train_scorer

__all__ = [
    "EvidenceExample",
    "EvidenceLog",
    "EvidenceRecipe",
    "Example",
    "ImitationLog",
    "ScorerRecipe",
    "StepLog",
    "TrainableScorer",
    "TrainingError",
    "evidence_example_of",
    "example_of",
    "make_accelerator",
    "soft_topk",
    "train_evidence",
    "train_scorer",
]
