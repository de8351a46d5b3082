"""The error of the page."""

from __future__ import annotations

from ..errors import FoveateError


class AppError(FoveateError, RuntimeError):
    """The page cannot be shown, cannot be asked this, or a run on it failed."""
