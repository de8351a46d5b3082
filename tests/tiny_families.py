"""Tiny random models of the families that `tests/models/test_families.py` runs, made like those of `tiny_models`."""

from __future__ import annotations

from collections.abc import Callable

import tiny_models
from tiny_models import Zoo

# One maker a family, such as ``def llava_next() -> Zoo``, each with a cache around it.
MAKERS: tuple[Callable[[], Zoo], ...] = (tiny_models.qwen3_5, tiny_models.qwen3_5_moe)
