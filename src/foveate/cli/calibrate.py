"""``foveate calibrate``: measure the attention prior of a model, which debiasing methods divide by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..pictures import image_files, open_image
from .outputs import FORCE, require_file
from .session import MODEL_HELP, TESTBED, Session
from .view import default_prompt

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_SCENES = 200


def calibrate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    images: Annotated[
        str, typer.Option(metavar="FOLDER|testbed", help="The pictures to average over, or 200 generated scenes.")
    ],
    layer: Annotated[int, typer.Option(min=1, help="The LLM layer whose input the method prunes.")] = 2,
    prompt: Annotated[
        str | None, typer.Option(help="What is asked of every picture.", show_default="one that the model understands")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to save the prior.", show_default="foveate's cache")
    ] = None,
    force: FORCE = False,
) -> None:
    """Measure the attention prior of a model over a folder of pictures."""
    from rich.console import Console
    from rich.progress import track

    from ..importance.prior import default_prior_path
    from ..runtime.calibrate import measure_prior

    files = [] if images == TESTBED else image_files(Path(images))
    if output is not None:
        require_file(output, "-o", "prior.safetensors", files, force)
    count, pictures = (len(files), map(open_image, files)) if files else (_SCENES, _scenes())
    session = Session.load(model)
    asked = default_prompt(session) if prompt is None else prompt

    def samples() -> Iterator[dict[str, Tensor]]:
        console = Console(stderr=True)
        for picture in track(pictures, description="Measuring the prior", total=count, console=console):
            yield session.inputs([picture], asked)

    prior = measure_prior(session.model, samples(), layer, asked)
    path = output or default_prior_path(prior.model, layer)
    replace(prior, model=session.label).save(path)
    typer.echo(f"Averaged over {count} images: {path}")
    if output is None:
        typer.echo('d2pruner finds it there by itself: foveate.prune(model, "d2pruner", keep=0.25)')
    else:
        typer.echo(f'Use it with: foveate.prune(model, "d2pruner", keep=0.25, prior={str(path)!r})')


def _scenes() -> Iterator[Image.Image]:
    """Pictures that no test of the testbed shows."""
    from ..testbed import generate

    return (generate("train", 0, index, size=(112, 112)).frames[0] for index in range(_SCENES))
