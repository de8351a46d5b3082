"""Pruning a live transformers model: attach, detach, report."""

from .inputs import prune_inputs
from .pruning import Pruning, attach, prune
from .report import ImageReport, Report

__all__ = ["ImageReport", "Pruning", "Report", "attach", "prune", "prune_inputs"]
