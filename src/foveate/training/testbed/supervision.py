"""Dense supervision of the tokens that the language model reads: linear heads, and the symbols they should resemble.

A symbol is what a perfect tower would say of a token: the sum of fixed vectors, one for each label. A language model
can learn its part from symbols alone, beside the tower that learns to make them; both are then trained together.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...testbed.lexicon import COLOURS, NOUNS
from ...testbed.questions import LARGEST, STEP
from .labels import CHARACTERS, CLASSES, Labels

_WEIGHTS = {"thing": 1.5, "colour": 1.0, "character": 3.0, "place": 1.0, "value": 1.0, "centre": 1.0}
_SIDE_WEIGHT = 0.5
_EMPTY_WEIGHT = 0.3  # of tokens that show nothing: most of them
_SIDES = ("x0", "y0", "x1", "y1")


class Heads(nn.Module):
    """One linear readout of all labels; dropped when the model is exported."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.readout = nn.Linear(width, sum(CLASSES.values()))

    def forward(self, tokens: Tensor, labels: Labels) -> tuple[Tensor, dict[str, float]]:
        """The loss of visual tokens (B, N, d), and for each label the share of tokens that show it and are right."""
        logits = self.readout(tokens).flatten(0, 1).split(list(CLASSES.values()), dim=-1)
        occupied = labels.thing.flatten() > 0
        weight = torch.where(occupied, 1.0, _EMPTY_WEIGHT)
        loss = tokens.new_zeros(())
        right: dict[str, float] = {}
        for (name, label), scores in zip(labels.items(), logits, strict=True):
            target = label.flatten()
            if name in _SIDES:
                loss = loss + _SIDE_WEIGHT * F.cross_entropy(scores[occupied], target[occupied])
                where = occupied
            else:
                each = F.cross_entropy(scores, target, reduction="none")
                loss = loss + _WEIGHTS[name] * (each * weight).sum() / weight.sum()
                where = target > 0
            with torch.no_grad():
                right[name] = (scores.argmax(-1) == target)[where].float().mean().item()
        return loss, right


class Inventory(nn.Module):
    """A linear readout of what is in the picture from the tower's class token; dropped likewise.

    CLIP learns such things from captions. Without it nothing would tell the class token where to look, and methods
    that read its attention would be judged by noise.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.readout = nn.Linear(width, (CLASSES["thing"] - 1) * (CLASSES["colour"] - 1))

    def forward(self, summary: Tensor, labels: Labels) -> tuple[Tensor, float]:
        """The loss of class tokens (B, d), and the share of the things there, each with its colour, that are found."""
        scores, colours = self.readout(summary), CLASSES["colour"] - 1
        kinds = ((labels.thing - 1) * colours + labels.colour - 1).clamp_min(0)
        there = torch.zeros_like(scores).scatter_reduce(1, kinds, (labels.thing > 0).to(scores), "amax")
        loss = F.binary_cross_entropy_with_logits(scores, there)
        return loss, (scores > 0)[there > 0].float().mean().item()


class Pointer(nn.Module):
    """A linear readout of the box that a question's words name, halfway through the language model; dropped likewise.

    Where things are is then known early enough for the layers after to compare two of them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.readout = nn.Linear(width, len(_SIDES) * CLASSES[_SIDES[0]])

    def forward(self, halfway: Tensor, named: Tensor) -> tuple[Tensor, float]:
        """The loss of states (B, T, d) given `Packed.named`, and the share of named sides that are right."""
        there = named[..., 0] >= 0
        if not there.any():
            return halfway.new_zeros(()), math.nan
        scores = self.readout(halfway[there]).unflatten(-1, (len(_SIDES), -1)).flatten(0, 1)
        sides = named[there].flatten()
        return F.cross_entropy(scores, sides), (scores.argmax(-1) == sides).float().mean().item()


class Symbols(nn.Module):
    """Labels as vectors of the language model's width, made from its first word embeddings; never trained."""

    def __init__(self, embeddings: Tensor, vocabulary: dict[str, int], seed: int) -> None:
        super().__init__()
        width = embeddings.shape[1]
        generator = torch.Generator().manual_seed(seed)

        def random(rows: int, scale: float = 0.3) -> Tensor:
            return scale * torch.randn(rows, width, generator=generator)

        def role() -> Tensor:
            return torch.linalg.qr(torch.randn(width, width, generator=generator))[0]

        def words(names: list[str]) -> Tensor:
            return embeddings[[vocabulary[name] for name in names]]

        nothing = torch.zeros(1, width)
        tables = {
            "thing": torch.cat([nothing, words(list(NOUNS)), random(2)]),
            "colour": torch.cat([nothing, words(list(COLOURS))]),
            "character": torch.cat([nothing, words(list(CHARACTERS))]),
            "place": torch.cat([nothing, random(CLASSES["place"] - 1)]),
            "value": torch.cat([nothing, words(list("123456789")) @ role()]),
            "centre": torch.cat([nothing, random(1)]),
        }
        sides = words([f"<{side}>" for side in range(0, LARGEST + 1, STEP)])
        tables |= {name: sides @ role() for name in _SIDES}
        for name, table in tables.items():
            self.register_buffer(name, table.detach().clone())
        self.register_buffer("rows", random(2 * LARGEST // STEP, 0.15))
        self.register_buffer("columns", random(2 * LARGEST // STEP, 0.15))

    def forward(self, labels: Labels, grid: tuple[int, int]) -> Tensor:
        """The symbols of visual tokens in raster order: (B, N, d)."""
        occupied = (labels.thing > 0)[..., None]
        total: Tensor = torch.zeros(())
        for name, label in labels.items():
            vectors = self.get_buffer(name)[label]
            total = total + (vectors * occupied if name in _SIDES else vectors)
        rows, columns = grid
        places = (self.get_buffer("rows")[:rows, None] + self.get_buffer("columns")[None, :columns]).flatten(0, 1)
        return total + places.repeat(total.shape[1] // len(places), 1)
