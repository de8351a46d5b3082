"""Pruning a live transformers model: the engine, its seams, and what it reports."""

from .engine import Pruning
from .planner import Composition, compose
from .report import ImageReport, Report, StageReport

__all__ = ["Composition", "ImageReport", "Pruning", "Report", "StageReport", "compose"]
