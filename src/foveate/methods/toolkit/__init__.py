"""What a method is made of: the base class, the registry, and the pieces that several methods share.

Packages of your own may import everything that is listed here.
"""

from .at_layer import AtLayer
from .base import Method, ModelFacts, Provenance, Stage, Where
from .interventions import AttentionEdit, ExpertCut, LogitBias
from .published import published
from .registry import get_method, method_names, register_method
from .two_stage import HybridMethod, TwoStageMethod
from .wrapper import Wrapper

__all__ = [
    "AtLayer",
    "AttentionEdit",
    "ExpertCut",
    "HybridMethod",
    "LogitBias",
    "Method",
    "ModelFacts",
    "Provenance",
    "Stage",
    "TwoStageMethod",
    "Where",
    "Wrapper",
    "get_method",
    "method_names",
    "published",
    "register_method",
]
