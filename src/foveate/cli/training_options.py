"""What the commands that train a scorer for a model share: their data, and what is seen of their steps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from ..data.loading import TESTBED, LoadedModel, LoadOptions, load

if TYPE_CHECKING:
    from ..data.samples import BadLine, Sample

DATA = Annotated[
    str, typer.Option(metavar="FILE|testbed", help="A JSONL file of samples, its folder, or generated scenes.")
]
OUTPUT = Annotated[
    Path, typer.Option("--output", "-o", file_okay=False, help="Folder of the scorer, the log and the checkpoint.")
]
MICRO_BATCH = Annotated[int, typer.Option(min=1, help="Questions in one forward: as many as fit.")]
SAMPLES = Annotated[int, typer.Option(min=8, help="Questions of --data testbed, at least.")]
SAVE_EVERY = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
SKIP_BAD = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out lines of --data that cannot be used, and count them.")
]


class Log(Protocol):
    """What is told of a step; as a string, its figures."""

    @property
    def step(self) -> int: ...

    @property
    def steps(self) -> int: ...


def read_data(data: str, skip_bad: bool) -> tuple[list[Sample], list[BadLine]]:
    """The usable lines of a file, and the others; nothing where scenes are to be generated."""
    from ..data.samples import usable_samples

    return ([], []) if data == TESTBED else usable_samples(Path(data), skip_bad=skip_bad)


def generate_samples(session: LoadedModel, count: int, seed: int) -> list[Sample]:
    """Scenes that no test of the testbed shows, with equally many questions of each family that the model can see."""
    from ..models import adapter_of
    from ..testbed.questions import families_seen
    from ..testbed.suite import samples

    families = families_seen("video" in adapter_of(session.model).modalities)
    return samples("train", seed, math.ceil(count / len(families)), families)


def open_model(
    name: str, options: LoadOptions, data: str, read: list[Sample], bad: list[BadLine], skip_bad: bool
) -> tuple[Any, LoadedModel, list[Sample], list[BadLine]]:
    """This process's accelerator, the model on it, and of the lines of `read_data` those that it can be asked."""
    from ..data.askable import askable
    from ..training import make_accelerator

    accelerator = make_accelerator()  # before the model is loaded: it tells this process which GPU is its own
    session = load(name, options)
    if read:
        read, bad = askable(session.processor, read, bad, Path(data), skip_bad)
    return accelerator, session, read, bad


def announce(accelerator: Any, size: str, bad: Sequence[BadLine]) -> None:
    """Tell, in the main process, which lines are left out and how much there is to do."""
    if accelerator.is_main_process:
        for one in bad:
            typer.echo(f"Left out: {one.where} ({one.why.rstrip('.')}).", err=True)
        typer.echo(f"{size}.", err=True)


def fingerprint(samples: Sequence[Sample], boxes: bool = False) -> str:
    """What tells this data from other data: a hash of questions, answers, pictures' names and, where used, boxes."""
    digest = hashlib.sha256()
    for sample in samples:
        names = [one.name if isinstance(one, Path) else "" for one in sample.pictures]
        facts = (sample.id, sample.question, sample.answers[0], names, *([sample.boxes] if boxes else []))
        digest.update(repr(facts).encode())
    return digest.hexdigest()[:16]


@contextmanager
def step_bar(visible: bool) -> Iterator[Callable[[Log], None]]:
    """A progress bar on stderr with the latest step's figures."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    figures = TextColumn("{task.fields[figures]}")
    with Progress(*columns, figures, console=Console(stderr=True), disable=not visible) as progress:
        task = progress.add_task("Training", total=None, figures="")

        def show(log: Log) -> None:
            progress.update(task, total=log.steps, completed=log.step + 1, figures=str(log))

        yield show
