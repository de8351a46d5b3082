"""``foveate check``: whether a checkpoint is pruned rightly, and which methods run on it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.images import open_image
from ..data.loading import MODEL_HELP, LoadOptions, load, require_model
from .ask import warn_of_unknown_words
from .model_options import DEVICE, DEVICE_MAP, DTYPE, MAX_PIXELS
from .tables import show

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from rich.table import Table

    from ..verification import CheckReport

_QUESTION = "What is in the picture?"


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    image: Annotated[
        Path | None, typer.Option(help="The picture to check with.", show_default="a scene of the testbed")
    ] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about it.", show_default=_QUESTION)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    device: DEVICE = None,
    dtype: DTYPE = None,
    device_map: DEVICE_MAP = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Check that a model is pruned rightly, and list the methods that run on it.

    One prompt with one picture is held against what is computed by hand: nothing changes with keep=1.0, pruning equals
    running the model on shortened inputs, decoding with the KV cache equals decoding without, and the model is as it
    was afterwards. The exit code is 1 where one of these does not hold.
    """
    options = LoadOptions(device, dtype, device_map, max_pixels)
    require_model(model)

    from rich.console import Console

    from ..methods.toolkit.notes import silence_notes
    from ..verification import check as check_model

    picture = _scene() if image is None else open_image(image)
    session = load(model, options)
    inputs = session.inputs([picture], question or _QUESTION)
    if question is not None:
        warn_of_unknown_words(session, question)
    place = session.model.device
    start = time.perf_counter()
    with Console(stderr=True).status(f"Checking {session.label}"), silence_notes():
        report = check_model(session.model, inputs)
    seconds, peak = time.perf_counter() - start, _peak_bytes(place)
    if as_json:
        told = {"model": session.label, "class": type(session.model).__name__, "seconds": seconds, "peak_bytes": peak}
        typer.echo(json.dumps({**told, **report.to_dict()}, indent=2))
    else:
        console = Console()
        show(console, _checks(report, f"{type(session.model).__name__} on {place}, {session.model.dtype}"))
        show(console, _methods(report))
        memory = "" if peak is None else f", {peak / 2**30:.1f} GiB of GPU memory at most"
        console.print(f"{'All checks passed' if report.passed else 'A check failed'}: {seconds:.1f} s{memory}.")
    if not report.passed:
        raise typer.Exit(1)


def _scene() -> Image.Image:
    from ..testbed import scenes

    return scenes()[0].image


def _peak_bytes(device: torch.device) -> int | None:
    """The most GPU memory that this process has held, the model included; None on the CPU."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _checks(report: CheckReport, title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("check", "result", "by how much", "seconds"):
        table.add_column(heading)
    for one in report.checks:
        table.add_row(one.name, "passed" if one.passed else "FAILED", one.detail, f"{one.seconds:.1f}")
    return table


def _methods(report: CheckReport) -> Table:
    from rich.table import Table

    table = Table(title="Methods", title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("on this model")
    for name, sentence in report.methods.items():
        table.add_row(name, sentence or "runs")
    return table
