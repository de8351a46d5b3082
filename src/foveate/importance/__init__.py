"""How much each token matters: learned scorer, attention rows, and the prior that takes the bias out of them."""

from .attention import attention_received, attention_row
from .attention_prior import AttentionPrior, default_prior_path, find_prior
from .expert_calibration import ExpertCalibration, default_experts_path, find_experts
from .learned_scorer import LearnedScorer, find_scorer

__all__ = [
    "AttentionPrior",
    "ExpertCalibration",
    "LearnedScorer",
    "attention_received",
    "attention_row",
    "default_experts_path",
    "default_prior_path",
    "find_experts",
    "find_prior",
    "find_scorer",
]
