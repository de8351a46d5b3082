"""``foveate view``: what each method keeps of a picture, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..data.images import open_image
from ..data.limits import unknown_words
from ..data.loading import MODEL_HELP, LoadedModel, load
from ..data.shipped import DEFAULT
from ..files import write_picture
from .errors import InputError
from .hyperparameters import CONFIG, SETTINGS, config_at, configure_methods
from .paths import FORCE, require_picture

_GENERAL = "Please describe the image."

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..config import PruningConfig
    from ..methods import Method
    from ..runtime import Report
    from ..runtime.planner import KeepLike
    from ..runtime.report import ImageReport
    from ..tokens import Grid
    from ..visualize import Panel


METHODS, KEEP = "idpruner,divprune,random", "10%"


def view(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    methods: Annotated[
        str | None, typer.Option(help="Pruning methods, separated by commas.", show_default=METHODS)
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="A percentage, a fraction, a token count, or auto.", show_default=KEEP)
    ] = None,
    settings: SETTINGS = None,
    config: CONFIG = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the picture.")] = Path("kept.png"),
    question: Annotated[str | None, typer.Option(help="What is asked; some methods look at it.")] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT,
    force: FORCE = False,
) -> None:
    """Draw which visual tokens of a picture each method keeps."""
    from ..config import PruningConfig
    from ..visualize import comparison

    require_picture(output, "-o", [image], force)
    given = config_at(config, {"--methods": methods, "--keep": keep, "--set": settings})
    names = list(dict.fromkeys(name.strip() for name in (METHODS if methods is None else methods).split(",")))
    if not any(names):
        raise InputError("--methods names no method; give some, such as idpruner,random.")
    wanted = configure_methods(list(filter(None, names)), settings or ())
    drawn = [given] if given else [PruningConfig(one, KEEP if keep is None else keep) for one in wanted]
    picture = open_image(image)
    session = load(model)
    asked = default_prompt(session) if question is None else question
    write_picture(output, comparison(panels_of(session, picture, asked, drawn)))
    typer.echo(f"What {', '.join(one.label for one in drawn)} keep, asked {asked!r}: {output}")


def default_prompt(session: LoadedModel) -> str:
    """A prompt of words that the model knows, for when the user gives none."""
    unknown = unknown_words(session.processor.tokenizer, _GENERAL)
    return "How many things are in the picture?" if unknown else _GENERAL


def kept_panels(
    session: LoadedModel, picture: Image.Image, question: str, methods: Sequence[Method], keep: KeepLike
) -> list[Panel]:
    """The picture as the model sees it, then one panel for what each method keeps."""
    from ..config import PruningConfig

    return panels_of(session, picture, question, [PruningConfig(method, keep) for method in methods])


def panels_of(
    session: LoadedModel, picture: Image.Image, question: str, configs: Sequence[PruningConfig]
) -> list[Panel]:
    """The picture as the model sees it, then one panel for what each configuration keeps."""
    from rich.console import Console
    from rich.progress import track

    from ..api import prune
    from ..methods import Method
    from ..visualize import overlay, record_selections, scale_to_grid

    inputs = session.inputs([picture], question)
    visible = session.visible_part(picture)
    panels: list[Panel] = []
    for config in track(configs, description="Looking", console=Console(stderr=True), transient=True):
        method = config.method
        observed = record_selections(method) if isinstance(method, Method) else method
        with prune(session.model, replace(config, method=observed)) as pruning:
            session.generate(inputs, 1)
            report = pruning.report()
        grid, kept, target = _join_tiles(report.images, observed, visible.size)
        if not panels:
            part = "; the rest is cropped off" if session.crops(picture) else ""
            title = "centre of the original" if part else "original"
            panels.append((title, f"{report.tokens_before} visual tokens{part}", scale_to_grid(visible, grid)))
        drawn = overlay(visible, grid, kept, target=target)
        panels.append(
            (
                f"{config.label}, {', '.join(budget.label for budget in config.budgets)}",
                _subtitle(report, target),
                drawn,
            )
        )
    return panels


class WholePicture(NamedTuple):
    """A whole picture, which the model may have seen in tiles: its grid, what is kept, and where tokens were merged."""

    grid: Grid
    kept: Tensor
    target: Tensor | None


def _join_tiles(tiles: Sequence[ImageReport], method: Any, size: tuple[int, int]) -> WholePicture:
    """The tiles of a picture of a (width, height) side by side."""
    import torch

    from ..tokens import Grid
    from ..visualize import merge_targets, tile_layout

    one, area = tiles[0].grid, len(tiles[0].grid)
    rows, columns = tile_layout(len(tiles), size)
    drawn = rows * columns
    places = torch.arange(drawn * area).view(rows, columns, one.rows, one.columns).transpose(1, 2).flatten()
    kept = torch.cat([tile.kept.cpu() for tile in tiles[:drawn]])
    found = [merge_targets(method, tile, area) for tile in range(drawn)]
    target = None
    if any(one is not None for one in found):
        local = [torch.where(tile.kept.cpu(), torch.arange(area), -1) for tile in tiles]
        filled = [local[tile] if one is None else one for tile, one in enumerate(found)]
        flat = torch.cat([torch.where(one >= 0, one + tile * area, -1) for tile, one in enumerate(filled)])[places]
        target = torch.where(flat >= 0, places.argsort()[flat.clamp_min(0)], -1)
    return WholePicture(Grid(rows * one.rows, columns * one.columns), kept[places], target)


def _subtitle(report: Report, target: Tensor | None) -> str:
    """How many tokens are left, and what became of the others."""
    average = round(report.average_visual_tokens)
    inside = "" if average == report.tokens else f" in the end, {average} on average"
    if target is not None and bool((target >= 0).all()):
        return f"{report.tokens_before} tokens merged into {report.tokens}{inside}"
    kept = f"keeps {report.tokens} of {report.tokens_before} tokens{inside}"
    if target is not None:
        kept += f", {int((target >= 0).sum()) - report.tokens} others merged into them"
    if len(report.images) > 1:
        small = report.images[-1]
        kept += f", {small.tokens} of {small.tokens_before} of the whole in small"
    return kept
