"""A method's choice among a handful of tokens, for tests worked out by hand."""

import torch

from foveate.tokens import Grid, VisualTokens

X, Y, Z = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]


def kept(method, features, count, **cues):
    """The indices that `method` keeps of one row of tokens with these features, given as lists."""
    features = torch.tensor(features)
    cues = {key: torch.tensor(value) for key, value in cues.items()}
    tokens = VisualTokens.of(features, Grid(1, len(features)), **cues)
    return method.select(tokens, torch.tensor([count])).keep[0].nonzero().flatten().tolist()
