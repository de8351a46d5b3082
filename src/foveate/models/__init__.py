"""Model families, one file each: where visual tokens come out and which cues the model can give."""

from .adapter import ModelAdapter
from .registry import SupportedModel, adapter_of, generic_model, register_model, supported_models

__all__ = ["ModelAdapter", "SupportedModel", "adapter_of", "generic_model", "register_model", "supported_models"]
