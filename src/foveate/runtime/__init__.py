"""Pruning a live transformers model: attach, detach, report."""

from .composition import Composition, compose
from .inputs import prune_inputs
from .live import attach, prune
from .pruning import Pruning
from .report import ImageReport, Report, StageReport

__all__ = [
    "Composition",
    "ImageReport",
    "Pruning",
    "Report",
    "StageReport",
    "attach",
    "compose",
    "prune",
    "prune_inputs",
]
