"""``foveate train testbed``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import going_on
from .paths import require_folder


def testbed(
    model: Annotated[str, typer.Option(help="llava or qwen2.5-vl.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the run: checkpoints, log, and the trained model at the end."),
    ],
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights and of the scenes.")] = 0,
    hours: Annotated[float, typer.Option(min=0.0, help="Processor time over all stages; more may be added later.")] = 3,
    stage: Annotated[
        str | None, typer.Option(help="Only vision, language or joint: the first two can go in parallel.")
    ] = None,
) -> None:
    """Train a small model of the testbed from scratch, or resume from the folder's last checkpoint."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..training.testbed.trainer import StageProgress, Training

    require_folder(output, "-o")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with going_on(), Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: StageProgress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=1.0)
            bars.update(tasks[progress.stage], completed=progress.share)
            figures = "  ".join(f"{name} {value:.3f}" for name, value in progress.figures.items())
            bars.console.print(f"[dim]{progress.stage} {progress.step}[/dim]  {figures}", highlight=False)

        folder = Training(model, seed, output, hours).run(show, stage)
    if folder is not None:
        console.print(f"The trained model is in {folder}.")
        console.print(_standing(folder, output), highlight=False)


def _standing(folder: Path, out: Path) -> str:
    """How far the model is from one to compare methods by, and the command that tells it for certain."""
    from ..evaluation.gate import MACRO_LEAST
    from ..testbed.questions import FAMILIES

    reached = json.loads((folder / "training.json").read_text(encoding="utf-8"))["validation"]
    scores = [value for name, value in reached.items() if name in FAMILIES]
    right = sum(scores) / len(scores) if scores else 0.0
    far = "" if right >= MACRO_LEAST else f", too few: it takes {MACRO_LEAST:.0%}, and some hours of training,"
    return (
        f"It answers {right:.0%} of questions that it has not seen{far} to compare methods by. "
        f"The gate tells: foveate eval --suite testbed --gate --methods idpruner,divprune --model {folder} "
        f"-o {out / 'gate'}"
    )
