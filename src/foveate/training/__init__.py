"""Training: learned scorers for any supported model, and the models of the testbed."""

from .checkpoint import TrainingError
from .scorer import TrainableScorer
from .scorer_data import Example, example_of
from .scorer_folder import StepLog
from .scorer_recipe import ScorerRecipe
from .scorer_trainer import make_accelerator, train_scorer
from .soft_topk import soft_topk

__all__ = [
    "Example",
    "ScorerRecipe",
    "StepLog",
    "TrainableScorer",
    "TrainingError",
    "example_of",
    "make_accelerator",
    "soft_topk",
    "train_scorer",
]
