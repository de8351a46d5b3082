"""Selectors: features and scores in, a keep mask with the exact count out. They know nothing but torch.

One algorithm a file. Every selector takes one image, (N, d) and (N,), or a padded batch, (B, N, d) and (B, N);
works in float32; gives ties to the lowest index; and raises SelectionError on what it cannot choose from.
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
