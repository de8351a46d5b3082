"""A toy that methods of the field are compared on: 36 tokens on a 6 x 6 grid, given by formulas.

What the tests expect of it was computed by implementations that share nothing with foveate.
"""

import torch

from foveate.tokens import Grid, VisualTokens

_i = torch.arange(36, dtype=torch.float64)
_k = torch.arange(16, dtype=torch.float64)
FEATURES = (0.7 * (_i[:, None] + 1) * (_k + 1)).cos() + 0.3 * (1.3 * _i[:, None] + _k).sin() + 0.5
SALIENCY = (1 + (2.1 * _i + 0.4).sin()) / 2
RELEVANCE = (1 + (1.7 * _i + 0.9).cos()) / 2


def text(rows):
    return (0.5 * (torch.arange(rows, dtype=torch.float64)[:, None] + 2) * (_k + 1)).cos()


def toy(rows=6, columns=6, frames=1, attention=SALIENCY, words=3):
    """The toy as one image whose encoder features are its features, and whose attention is its saliency."""
    grid = Grid(rows, columns, frames)
    cues = {"encoder_attention": attention, "encoder_features": FEATURES, "text_embeddings": text(words)}
    return VisualTokens.of(FEATURES, grid, **cues)


def chosen(method, tokens, count):
    return method.select(tokens, torch.tensor([count]))


def kept(method, tokens, count):
    """Indices of the kept tokens of one image."""
    return chosen(method, tokens, count).keep[0].nonzero().flatten().tolist()
