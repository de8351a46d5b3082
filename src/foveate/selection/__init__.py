"""Selectors: features and scores in, a keep mask with the exact count out. They know nothing but tensors.

One algorithm a module: `topk`, `mmr`, `maxmin`, `independent_set`, `coverage`, `dpp`, and the baselines `stride` and
`random`. Every selector

* takes one image, features (N, d) and scores (N,), or a padded batch, (B, N, d) and (B, N), with `valid` (B, N);
* returns a bool mask with exactly `count` true for each image;
* computes in float32, gives ties to the lowest index, and chooses the same on every run;
* raises `SelectionError` on arguments that it cannot choose from.

Two modules are public beside the selectors, for selections of your own: `foveate.selection.batch` checks arguments as
the selectors do, and `foveate.selection.similarity` compares features so that equal tokens tie.
"""

from .coverage import coverage
from .dpp import dpp
from .independent_set import independent_set
from .maxmin import maxmin
from .mmr import mmr
from .random import random
from .stride import stride
from .topk import topk

__all__ = ["coverage", "dpp", "independent_set", "maxmin", "mmr", "random", "stride", "topk"]
