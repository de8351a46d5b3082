"""One published method a file. `get_method` finds them by name; none is imported before it is asked for."""

from .base import Method, ModelFacts, Provenance, Stage, get_method, method_names, register_method
from .published import published

__all__ = ["Method", "ModelFacts", "Provenance", "Stage", "get_method", "method_names", "published", "register_method"]
