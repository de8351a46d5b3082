"""Stride baseline: tokens at even steps through the raster, a plain subsampling of the image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import selection
from ..tokens import Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.registry import register_method


@register_method("stride")
@dataclass(frozen=True)
class Stride(Method):
    """Every n-th token in raster order, n fractional where it must be."""

    provenance = Provenance(
        paper="none (baseline)",
        licence="foveate's own",
        evidence=(
            "tests/methods/test_avgpool.py",
            "tests/methods/test_contract.py",
            "tests/selection/test_selectors.py::test_baselines",
        ),
    )

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(selection.stride(tokens.features, count, valid=tokens.valid))
