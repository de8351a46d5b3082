"""``foveate view``: what each method keeps of a picture, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.clips import VIDEO_SUFFIXES, open_clip
from ..data.images import open_image
from ..data.limits import unknown_words
from ..data.loading import LoadedModel, LoadOptions, load, require_model
from ..data.shipped import DEFAULT
from ..files import write_picture, write_text
from .ask import FRAMES, budgets_of
from .early import complete_method, parts, require_budgets, require_methods, require_settings
from .hyperparameters import CONFIG, SETTINGS, config_at, configure_methods
from .model_options import DEVICE, DEVICE_MAP, DTYPE, MAX_PIXELS, MODEL
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
    from ..visualize import Panel, TiledPicture


METHODS, KEEP = "idpruner,divprune,random", "10%"


def view(
    image: Annotated[Path, typer.Argument(help="A picture; of a clip a folder of frames, or a video file.")],
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            "--method",
            help="Pruning methods, separated by commas.",
            show_default=METHODS,
            autocompletion=complete_method,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Budgets, separated by commas: a percentage, a fraction, a token count, or auto.", show_default=KEEP
        ),
    ] = None,
    settings: SETTINGS = None,
    config: CONFIG = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write it: PNG, JPEG, SVG, PDF and more.")
    ] = Path("kept.png"),
    question: Annotated[str | None, typer.Option(help="What is asked; some methods look at it.")] = None,
    model: MODEL = DEFAULT,
    frames: FRAMES = 8,
    force: FORCE = False,
    device: DEVICE = None,
    dtype: DTYPE = None,
    device_map: DEVICE_MAP = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Draw which visual tokens of a picture each method keeps, or of each frame of a clip."""
    options = LoadOptions(device, dtype, device_map, max_pixels)
    names, keeps = (
        parts(METHODS if methods is None else methods, "--methods"),
        parts(KEEP if keep is None else keep, "--keep"),
    )
    require_methods(names)
    require_budgets(keeps)
    require_settings(settings)
    require_model(model)
    require_picture(output, "-o", [image] if image.is_file() else [], force, also=(".svg",))
    clip = image.is_dir() or image.suffix.lower() in VIDEO_SUFFIXES
    pictures = open_clip(image, frames) if clip else [open_image(image)]

    from ..config import PruningConfig
    from ..visualize import comparison, comparison_svg

    given = config_at(config, {"--methods": methods, "--keep": keep, "--set": settings})
    wanted = configure_methods(names, settings or ())
    drawn = [given] if given else [PruningConfig(one, amount) for amount in keeps for one in wanted]
    session = load(model, options)
    asked = default_prompt(session) if question is None else question
    panels = clip_panels(session, pictures, asked, drawn) if clip else panels_of(session, pictures[0], asked, drawn)
    if output.suffix.lower() == ".svg":
        write_text(output, comparison_svg(panels))
    else:
        write_picture(output, comparison(panels))
    labels = list(dict.fromkeys(one.label for one in drawn))
    keep_of = "keep" if len(labels) > 1 else "keeps"
    typer.echo(f"What {', '.join(labels)} {keep_of}, asked {asked!r}: {output}")


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
    from ..visualize import TiledPicture

    visible = session.visible_part(picture)
    title, cropped = "original", ""
    if session.crops(picture):
        title = "centre of the original"
        cropped = ", cropped to {} of {}".format(*(f"{one.width} x {one.height}" for one in (visible, picture)))

    def lay_out(images: Sequence[ImageReport]) -> tuple[Image.Image, TiledPicture]:
        return visible, TiledPicture.of(len(images), images[0].grid, visible.size)

    return _draw(session, session.inputs([picture], question), configs, lay_out, title, cropped)


def clip_panels(
    session: LoadedModel, frames: Sequence[Image.Image], question: str, configs: Sequence[PruningConfig]
) -> list[Panel]:
    """The frames of a clip as the model sees them, in rows, then what each configuration keeps of them."""
    from ..visualize import TiledPicture

    def lay_out(images: Sequence[ImageReport]) -> tuple[Image.Image, TiledPicture]:
        (clip,) = images
        seen, layout = clip.grid.frames, TiledPicture.of_frames(clip.grid)
        shown = [frames[place * len(frames) // seen] for place in range(seen)]  # one for several that a token shows
        return _rows_of_frames(shown, layout.grid.columns // clip.grid.columns), layout

    return _draw(session, session.inputs(frames, question, video=True), configs, lay_out, "original", "")


def _draw(
    session: LoadedModel,
    inputs: dict[str, Tensor],
    configs: Sequence[PruningConfig],
    lay_out: Callable[[Sequence[ImageReport]], tuple[Image.Image, TiledPicture]],
    title: str,
    remark: str,
) -> list[Panel]:
    """A panel of what was asked about, with its `title` and a `remark`, and one for what each configuration keeps.

    Args:
        lay_out: the picture that is drawn on, and where the tokens of a report's images lie in it.
    """
    from rich.console import Console
    from rich.progress import track

    from ..api import prune
    from ..methods import Method
    from ..visualize import merge_targets, overlay, record_selections, scale_to_grid

    panels: list[Panel] = []
    for config in track(configs, description="Looking", console=Console(stderr=True), transient=True):
        method = config.method
        observed = record_selections(method) if isinstance(method, Method) else method
        with prune(session.model, replace(config, method=observed)) as pruning:
            session.generate(inputs, 1)
            report = pruning.report()
        images = report.images
        picture, layout = lay_out(images)
        kept = [image.kept.cpu() for image in images]
        targets = [merge_targets(observed, number, len(mask)) for number, mask in enumerate(kept)]
        target = layout.join_merges(targets, kept)
        if not panels:
            seen = images[0].grid.frames
            of_frames = f" of {seen} frames" if seen > 1 else ""
            subtitle = f"{report.tokens_before} visual tokens{of_frames}{remark}"
            panels.append((title, subtitle, scale_to_grid(picture, layout.grid)))
        drawn = overlay(picture, layout.grid, layout.join(kept), target=target)
        panels.append((f"{config.label}, {budgets_of(config)}", _subtitle(report, target), drawn))
    return panels


def _rows_of_frames(frames: Sequence[Image.Image], columns: int) -> Image.Image:
    """Frames in rows of so many, on white."""
    from PIL import Image

    width, height = frames[0].size
    picture = Image.new("RGB", (columns * width, math.ceil(len(frames) / columns) * height), "white")
    for place, frame in enumerate(frames):
        picture.paste(frame.resize((width, height)), (place % columns * width, place // columns * height))
    return picture


def _subtitle(report: Report, target: Tensor | None) -> str:
    """How many tokens are left, and what became of the others."""
    average = round(report.average_visual_tokens)
    inside = "" if average == report.tokens else f" in the end, {average} on average"
    if target is not None and bool((target >= 0).all()):
        return f"merges {report.tokens_before} tokens into {report.tokens}{inside}"
    kept = f"keeps {report.tokens} of {report.tokens_before} tokens{inside}"
    if target is not None:
        kept += f", {int((target >= 0).sum()) - report.tokens} others merged into them"
    if len(report.images) > 1:
        small = report.images[-1]
        kept += f", {small.tokens} of {small.tokens_before} of the whole in small"
    return kept
