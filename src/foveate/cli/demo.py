"""``foveate demo``: the bundled model on its scenes, with and without pruning, offline and in under a minute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..files import write_picture
from .hyperparameters import configured
from .outputs import FORCE, require_folder, require_picture
from .session import BUNDLED, Session
from .view import kept_panels

if TYPE_CHECKING:
    from rich.table import Table

    from ..testbed import Scene, SceneQuestion

    Run = tuple[str, float]  # method, keep

METHODS = ("idpruner", "random")
KEEPS = (0.25, 0.10)
_UNPRUNED: Run = ("stride", 1.0)
_BATCH = 25
_SAMPLES = 7


def demo(
    out: Annotated[Path, typer.Option(help="The folder for the picture of what is kept.")] = Path("foveate-demo"),
    force: FORCE = False,
) -> None:
    """Show what pruning keeps and what it costs, on the bundled tiny model."""
    from rich.console import Console

    from ..methods.notes import unannounced
    from ..testbed import scenes

    console = Console()
    require_folder(out, "--out")
    path = out / "kept.png"
    require_picture(path, "--out", force=force)
    session = Session.load(BUNDLED)
    known = scenes()
    asked = [(scene, question) for scene in known for question in scene.questions]
    console.print(
        f"{len(asked)} questions about {len(known)} held-out scenes, asked of a tiny model (1.6 M parameters, 64 "
        "words) trained for such scenes only. It shows how pruning works, not how well it does on photos."
    )
    with unannounced():  # of the same methods again and again
        given = _answers(session, asked)
        _draw(session, known[0], path)
    console.print(_accuracy(given, [question.answer for _, question in asked]))
    console.print(_samples(given, asked))
    console.print("What is kept of the first scene:", style="bold")
    typer.echo(str(path))


def _answers(session: Session, asked: list[tuple[Scene, SceneQuestion]]) -> dict[Run, list[str]]:
    """All answers of every run."""
    from rich.console import Console
    from rich.progress import Progress

    from ..api import prune
    from ..methods import get_method
    from ..testbed import answers

    runs = [_UNPRUNED, *((method, keep) for keep in KEEPS for method in METHODS)]
    prompts = [([scene.image], question.question) for scene, question in asked]
    given: dict[Run, list[str]] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Asking", total=len(runs) * len(prompts))
        for method, keep in runs:
            said = given[method, keep] = []
            for start in range(0, len(prompts), _BATCH):
                batch = prompts[start : start + _BATCH]
                # One seed would keep the same places of every scene and be right or wrong by luck.
                fields = {"seed": start // _BATCH} if method == "random" else {}
                with prune(session.model, get_method(method, **fields), keep=keep):
                    said.extend(answers(session.model, session.processor, batch))
                progress.advance(task, len(batch))
    return given


def _accuracy(given: dict[Run, list[str]], truth: list[str]) -> Table:
    """Right answers at each keep ratio."""
    from rich.table import Table

    def score(run: Run) -> str:
        right = sum(said == true for said, true in zip(given[run], truth, strict=True))
        return f"{right}/{len(truth)} ({right / len(truth):.1%})"

    table = Table(title="Right answers", title_justify="left")
    for heading in ("kept tokens", *METHODS):
        table.add_column(heading, justify="right")
    table.add_row("100%", *[score(_UNPRUNED)] * len(METHODS))
    for keep in KEEPS:
        table.add_row(f"{keep:.0%}", *(score((method, keep)) for method in METHODS))
    return table


def _samples(given: dict[Run, list[str]], asked: list[tuple[Scene, SceneQuestion]]) -> Table:
    """One question of each family: the truth, and what each run answered; wrong answers in red."""
    from rich.table import Table
    from rich.text import Text

    families: dict[str, int] = {}
    for index, (_, question) in enumerate(asked):
        families.setdefault(question.family, index)
    table = Table(title="Some of the answers (red: wrong)", title_justify="left")
    for heading in ("question", "truth"):
        table.add_column(heading, no_wrap=True)
    for method, keep in given:
        table.add_column("all tokens" if (method, keep) == _UNPRUNED else f"{method} {keep:.0%}")
    for index in list(families.values())[:_SAMPLES]:
        question = asked[index][1]
        said = (answers[index] for answers in given.values())
        table.add_row(
            question.question, question.answer, *(Text(s, style="" if s == question.answer else "red") for s in said)
        )
    return table


def _draw(session: Session, scene: Scene, path: Path) -> None:
    """The scene, and what idpruner keeps at each ratio, with random beside the last."""
    from ..visualize import comparison

    question, methods = scene.questions[0].question, configured(METHODS, ())
    first, *others = KEEPS
    panels = kept_panels(session, scene.image, question, methods[:1], first)
    for keep in others:
        panels += kept_panels(session, scene.image, question, methods, keep)[1:]
    write_picture(path, comparison(panels))
