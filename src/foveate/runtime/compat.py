"""What differs between the releases of transformers that foveate runs on."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers.cache_utils import CacheLayerMixin

# The oldest and the newest release that `make test-transformers` ran on; with every patch release of theirs.
TESTED = ("5.16", "5.24")

# The keyword argument of a forward, and the field of its output, that hold the KV cache; 5.24 renamed it.
_CACHE_NAMES = ("cache", "past_key_values")


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among the keyword arguments of a forward, whatever this release calls it; None without one."""
    return next((arguments[name] for name in _CACHE_NAMES if arguments.get(name) is not None), None)


def cache_of_output(output: Any) -> Any:
    """The KV cache of a forward's output; None without one."""
    return next((cache for name in _CACHE_NAMES if (cache := getattr(output, name, None)) is not None), None)


def with_cache(arguments: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """The keyword arguments of a forward with another KV cache, or with None."""
    return {name: cache if name in _CACHE_NAMES else value for name, value in arguments.items()}


def counting_layer(cache: Any) -> int:
    """The first layer whose cache holds an entry for each token; a cache reads its own length there.

    Layers of linear attention or convolution come before it in some models: they hold a state of one size.
    """
    layers = getattr(cache, "layers", ())
    return next((index for index, layer in enumerate(layers) if isinstance(layer, CacheLayerMixin)), 0)


def warn_if_untested() -> None:
    """Warn, once in a process, where this release of transformers is newer or older than what foveate is tested on."""
    _warn_of(transformers.__version__)


@functools.cache
def _warn_of(version: str) -> None:
    oldest, newest = map(Version, TESTED)
    if not oldest <= Version(Version(version).base_version) < Version(f"{newest.major}.{newest.minor + 1}"):
        warnings.warn(
            f"foveate is tested with transformers {TESTED[0]} to {TESTED[1]}, and this is {version}: compare a few "
            f"answers with keep=1.0 to those of the unpruned model, or install transformers=={TESTED[1]}.*.",
            stacklevel=_frames_of_foveate(),
        )


def _frames_of_foveate() -> int:
    """The `stacklevel` at which a warning of the calling function names the line that called foveate."""
    ours = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)  # torch's decorators are in between
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        level, frame = level + 1, frame.f_back
    return level
