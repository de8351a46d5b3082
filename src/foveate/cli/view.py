"""``foveate view``: what each method keeps of a picture, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..files import write_picture
from ..pictures import open_image
from .handler import InputError
from .hyperparameters import SETTINGS, configured
from .outputs import FORCE, require_picture
from .session import BUNDLED, MODEL_HELP, Session

if TYPE_CHECKING:
    from PIL import Image

    from ..methods import Method
    from ..visualize import Panel


def view(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    methods: Annotated[str, typer.Option(help="Pruning methods, separated by commas.")] = "idpruner,divprune,random",
    keep: Annotated[str, typer.Option(help="A percentage, a fraction, a token count, or auto.")] = "10%",
    settings: SETTINGS = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the picture.")] = Path("kept.png"),
    question: Annotated[str | None, typer.Option(help="What is asked; some methods look at it.")] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = BUNDLED,
    force: FORCE = False,
) -> None:
    """Draw which visual tokens of a picture each method keeps."""
    from ..budget import Budget
    from ..visualize import comparison

    require_picture(output, "-o", [image], force)
    names = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    if not names:
        raise InputError("--methods names no method; give some, such as idpruner,random.")
    budget, chosen = Budget(keep), configured(names, settings or ())
    picture = open_image(image)
    session = Session.load(model)
    asked = default_prompt(session) if question is None else question
    write_picture(output, comparison(kept_panels(session, picture, asked, chosen, budget.keep)))
    typer.echo(f"What {', '.join(names)} keep, asked {asked!r}: {output}")


def default_prompt(session: Session) -> str:
    """A prompt that the model understands, for when the user gives none."""
    return "colour star" if session.bundled else "Please describe the image."


def kept_panels(
    session: Session, picture: Image.Image, question: str, methods: Sequence[Method], keep: float | int | str
) -> list[Panel]:
    """The picture as the model sees it, then one panel for what each method keeps."""
    from rich.console import Console
    from rich.progress import track

    from ..api import prune
    from ..visualize import overlay, readable

    inputs = session.inputs([picture], question)
    seen = session.seen(picture)
    panels: list[Panel] = []
    for method in track(methods, description="Looking", console=Console(stderr=True), transient=True):
        with prune(session.model, method, keep=keep) as pruning:
            session.generate(inputs, 1)
            report = pruning.report()
            kept = report.images[0]
        if not panels:
            panels.append(("original", f"{kept.before} visual tokens", readable(seen, kept.grid)))
        average = round(report.average_visual_tokens)
        inside = "" if average == kept.after else f" in the end, {average} on average"
        subtitle = f"keeps {kept.after} of {kept.before} tokens{inside}"
        panels.append((method.name, subtitle, overlay(seen, kept.grid, kept.kept)))
    return panels
