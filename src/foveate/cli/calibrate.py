"""``foveate calibrate``: measure the attention prior of a model, or which of its experts tokens can go past."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.images import PictureError, image_files, open_image
from ..data.loading import MODEL_HELP, TESTBED, LoadedModel, LoadOptions, load, require_model
from ..errors import near_miss
from .errors import InputError
from .model_options import DEVICE, DEVICE_MAP, DTYPE, MAX_PIXELS
from .paths import FORCE, require_file
from .tables import count
from .view import default_prompt

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from torch import Tensor

    from ..data.samples import Sample

_SCENES = 200
_RULES = ("threshold", "ratio")


def calibrate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    images: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|testbed", help="The pictures to average over, or 200 generated scenes."),
    ] = None,
    layer: Annotated[int, typer.Option(min=1, help="The LLM layer whose input the method prunes.")] = 2,
    prompt: Annotated[
        str | None, typer.Option(help="What is asked of every picture.", show_default="one that the model understands")
    ] = None,
    experts: Annotated[
        str | None,
        typer.Option(
            metavar="threshold|ratio", help="Measure experts for the method modes, by this rule, in place of a prior."
        ),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --experts: a JSONL file of questions, or its folder.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="With --experts: how many questions are asked at most.")] = 1024,
    skip: Annotated[
        float | None,
        typer.Option(
            help="With --experts: the share of experts to skip.", show_default="0.5, and what the median ratio skips"
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=2, help="With --experts threshold: how many thresholds are tried of each kind.")
    ] = 20,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to save it.", show_default="foveate's cache")
    ] = None,
    force: FORCE = False,
    device: DEVICE = None,
    dtype: DTYPE = None,
    device_map: DEVICE_MAP = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Measure the attention prior of a model over a folder of pictures, or its experts on questions."""
    options = LoadOptions(device, dtype, device_map, max_pixels)
    require_model(model)
    if experts is not None:
        if experts not in _RULES:
            raise InputError(f"unknown rule {experts!r}{near_miss(experts, _RULES)}")
        if images is not None or questions is None:
            raise InputError("--experts is measured on --questions FILE, a JSONL of questions about pictures; give it.")
        return _calibrate_experts(model, options, experts, questions, limit, skip, steps, output, force)
    if images is None or questions is not None:
        raise InputError("a prior is measured over --images FOLDER; give it, or --experts with --questions FILE.")

    from rich.console import Console
    from rich.progress import track

    from ..importance import default_prior_path
    from ..importance.attention_prior import find_shipped_prior
    from ..importance.measured import cache_folder
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
    number, pictures = (len(files), map(open_image, files)) if files else (_SCENES, _scenes())

    def samples() -> Iterator[dict[str, Tensor]]:
        for picture in track(pictures, description="Measuring the prior", total=number, console=console):
            yield session.inputs([picture], asked)

    prior = measure_prior(session.model, samples(), layer, asked)
    path = output or default_prior_path(prior.model, layer, session.revision)
    replace(prior, model=session.label).save(path)
    typer.echo(f"Averaged over {count(number, 'image')}: {path}")
    if output is None:
        typer.echo('d2pruner finds it there by itself: foveate.prune(model, "d2pruner", keep=0.25)')
        if find_shipped_prior(prior.model, layer, session.revision) is not None:
            typer.echo(f"It goes before the prior that comes with {session.label}; delete the file to have that back.")
    else:
        typer.echo(f'Use it with: foveate.prune(model, "d2pruner", keep=0.25, prior={str(path)!r})')


def _calibrate_experts(
    model: str,
    options: LoadOptions,
    rule: Any,
    questions: Path,
    limit: int,
    skip: float | None,
    steps: int,
    output: Path | None,
    force: bool,
) -> None:
    """Measure which experts can be skipped, on the questions of a file, and save it."""
    from rich.console import Console
    from rich.progress import Progress

    from ..data.samples import usable_samples
    from ..importance import default_experts_path
    from ..importance.measured import cache_folder
    from ..runtime.expert_calibration import calibrate_experts

    if skip is not None and not 0 < skip < 1:
        raise InputError(f"--skip {skip:g} must lie between 0 and 1, such as 0.5.")
    samples, _ = usable_samples(questions, choose=lambda read: evenly(read, limit))
    files = [one for sample in samples for one in sample.pictures if isinstance(one, Path)]
    if output is not None:
        require_file(output, "-o", "experts.json", [questions, *files], force)
    else:
        require_file(cache_folder() / "experts" / "experts.json", "foveate's cache", "experts.json")
    session = load(model, options)
    inputs = _Inputs(session, samples)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Measuring the experts", total=None)
        found = calibrate_experts(
            session.model,
            inputs,
            rule,
            skip,
            steps,
            step=lambda: progress.advance(task),
        )
    path = output or default_experts_path(found.model, rule, session.revision)
    replace(found, model=session.label).save(path)
    shares = ", ".join(f"{share:.1%} of {kind}" for kind, share in found.skipped.items())
    asked = count(len(samples), "question")
    typer.echo(f"On {asked} these experts are skipped: {shares} (divergence {found.divergence:.3g}).")
    typer.echo(f"Saved: {path}")
    fields = [f"rule={rule!r}"] * (rule != "threshold") + [f"calibration={str(path)!r}"] * (output is not None)
    typer.echo(f"Use it with: foveate.prune({', '.join(['model', chr(34) + 'modes' + chr(34), 'keep=0.25', *fields])})")


def evenly(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most so many samples, evenly spread."""
    some = min(limit, len(samples))
    return [samples[place * len(samples) // some] for place in range(some)]


class _Inputs(Sequence[Mapping[str, Any]]):
    """Model inputs of samples, made when they are asked for: pictures of many questions do not fit in memory."""

    def __init__(self, session: LoadedModel, samples: Sequence[Sample]) -> None:
        self._session, self._samples = session, samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        sample = self._samples[index]
        return self._session.inputs(sample.open(), sample.question, sample.video)


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
