"""What methods keep of the testbed's scenes, beside what they answer: the reasons that docs/notes/findings.md gives.

First, of the tokens that a method keeps, the share that shows a thing; then how many tokens PruneSID's groups suppress.

Usage: PYTHONPATH=src python benchmarks/what_is_kept.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import foveate
from foveate.data.loading import LoadedModel, load
from foveate.data.prompts import Prompt, encode
from foveate.methods import prunesid
from foveate.models import adapter_of
from foveate.testbed import generate, shipped_models
from foveate.testbed.procedural import CELL, Scene
from foveate.training.testbed.labels import label

QUESTION = "how many things are in the picture?"
METHODS = ("idpruner", "divprune", "fastervlm", "random")
BUDGETS = (0.5, 0.25, 0.1, 0.05)


def scenes(seed: int, number: int) -> list[Scene]:
    """Scenes of objects, of the test split."""
    return [generate("test", seed, index, "objects") for index in range(number)]


def inputs_of(session: LoadedModel, scene: Scene) -> dict[str, Tensor]:
    return encode(session.model, session.processor, [Prompt(scene.frames, QUESTION)])


def shows_a_thing(session: LoadedModel, scene: Scene, inputs: dict[str, Tensor]) -> Tensor:
    """(N,) bool: whether the middle of a token lies in a thing; false on what a processor pads."""
    (grid,) = adapter_of(session.model).grids(inputs)["image"]
    width, height = scene.frames[0].size
    rows, columns = height // CELL, width // CELL
    shown = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    shown[:rows, :columns] = (label([scene], rows, columns).thing[0] > 0).view(rows, columns)
    return shown.flatten()


def share_of_things(session: LoadedModel, method: str, asked: list[dict[str, Tensor]], shown: list[Tensor]) -> float:
    """Of the tokens kept of all pictures, those that show a thing."""
    kept = []
    for inputs in asked:
        with foveate.prune(session.model, method, keep=0.1) as pruning:
            session.model(**inputs)
            kept.append(pruning.report().images[0].kept)
    return torch.cat([things[own] for things, own in zip(shown, kept, strict=True)]).float().mean().item()


@contextmanager
def counting_suppressed() -> Iterator[list[float]]:
    """Share of the tokens of each picture that PruneSID's groups suppress."""
    seen: list[float] = []
    original = prunesid.survivors

    def watched(near: Tensor) -> Tensor:
        alive = original(near)
        seen.append(1 - alive.float().mean().item())
        return alive

    prunesid.survivors = watched
    try:
        yield seen
    finally:
        prunesid.survivors = original


@torch.no_grad()
def main() -> None:
    things = Table("model", "all tokens", *METHODS, title="Share that shows a thing, at 10 %; 30 scenes of seed 5")
    suppressed = Table("model", *(f"{keep:.0%}" for keep in BUDGETS), title="PruneSID suppresses; 20 scenes of seed 7")
    for name in shipped_models():
        session, pictures = load(name), scenes(5, 30)
        asked = [inputs_of(session, scene) for scene in pictures]
        shown = [shows_a_thing(session, *pair) for pair in zip(pictures, asked, strict=True)]
        shares = [torch.cat(shown).float().mean().item()]
        shares += [share_of_things(session, method, asked, shown) for method in METHODS]
        things.add_row(name, *(f"{share:.0%}" for share in shares))
        asked, means = [inputs_of(session, scene) for scene in scenes(7, 20)], []
        for keep in BUDGETS:
            with counting_suppressed() as seen, foveate.prune(session.model, "prunesid", keep=keep):
                for inputs in asked:
                    session.model(**inputs)
            means.append(sum(seen) / len(seen))
        suppressed.add_row(name, *(f"{mean:.0%}" for mean in means))
    Console().print(things, suppressed)


if __name__ == "__main__":
    main()
