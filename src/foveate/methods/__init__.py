"""One published method a file. `get_method` finds them by name; none is imported before it is asked for."""

from .toolkit.base import Method, ModelFacts, Provenance, Stage
from .toolkit.published import published
from .toolkit.registry import get_method, method_names, register_method

__all__ = ["Method", "ModelFacts", "Provenance", "Stage", "get_method", "method_names", "published", "register_method"]
