"""Training: learned scorers for any supported model, and the models of the testbed."""

from .checkpoint import TrainingError
from .scorer.data import Example, example_of
from .scorer.folder import StepLog
from .scorer.imitation import ImitationLog
from .scorer.model import TrainableScorer
from .scorer.recipe import ScorerRecipe
from .scorer.soft_topk import soft_topk
from .scorer.trainer import make_accelerator, train_scorer

__all__ = [
    "Example",
    "ImitationLog",
    "ScorerRecipe",
    "StepLog",
    "TrainableScorer",
    "TrainingError",
    "example_of",
    "make_accelerator",
    "soft_topk",
    "train_scorer",
]
