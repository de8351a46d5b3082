"""``foveate calibrate``: measure the attention prior of a model, which debiasing methods divide by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.images import PictureError, image_files, open_image
from ..data.loading import MODEL_HELP, TESTBED, LoadOptions, load, require_model
from .errors import InputError
from .model_options import DEVICE, DEVICE_MAP, DTYPE, MAX_PIXELS
from .paths import FORCE, require_file
from .view import default_prompt

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
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
    device: DEVICE = None,
    dtype: DTYPE = None,
    device_map: DEVICE_MAP = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Measure the attention prior of a model over a folder of pictures."""
    options = LoadOptions(device, dtype, device_map, max_pixels)
    require_model(model)

    from rich.console import Console
    from rich.progress import track

    from ..importance.attention_prior import cache_folder, default_prior_path
    from ..runtime.calibration import measure_prior

    files = [] if images == TESTBED else image_files(Path(images))
    if output is not None:
        require_file(output, "-o", "prior.safetensors", files, force)
    else:
        require_file(cache_folder() / "priors" / "prior.safetensors", "foveate's cache", "prior.safetensors")
    console = Console(stderr=True)
    _check(files, open_image, console)
    session = load(model, options)
    asked = default_prompt(session) if prompt is None else prompt
    _check(files, lambda path: session.inputs([open_image(path)], asked), console)
    count, pictures = (len(files), map(open_image, files)) if files else (_SCENES, _scenes())

    def samples() -> Iterator[dict[str, Tensor]]:
        for picture in track(pictures, description="Measuring the prior", total=count, console=console):
            yield session.inputs([picture], asked)

    prior = measure_prior(session.model, samples(), layer, asked)
    path = output or default_prior_path(prior.model, layer, session.revision)
    replace(prior, model=session.label).save(path)
    typer.echo(f"Averaged over {count} images: {path}")
    if output is None:
        typer.echo('d2pruner finds it there by itself: foveate.prune(model, "d2pruner", keep=0.25)')
    else:
        typer.echo(f'Use it with: foveate.prune(model, "d2pruner", keep=0.25, prior={str(path)!r})')


def _check(files: Sequence[Path], read: Callable[[Path], object], console: Console) -> None:
    """Read all files, so that a bad one does not end the measurement in the middle.

    Raises:
        InputError: where some cannot be read; it names all of them.
    """
    from rich.progress import track

    bad = []
    for path in track(files, description="Checking the pictures", console=console, transient=True):
        try:
            read(path)
        except PictureError as error:
            bad.append(str(error))
    if bad:
        raise InputError(f"{len(bad)} of {len(files)} pictures cannot be used. {' '.join(bad)}")


def _scenes() -> Iterator[Image.Image]:
    """Pictures that no test of the testbed shows."""
    from ..testbed import generate

    return (generate("train", 0, index, size=(112, 112)).frames[0] for index in range(_SCENES))
