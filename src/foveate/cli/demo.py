"""``foveate demo``: a small model on drawn scenes, with and without pruning, offline and in under a minute."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.loading import LoadedModel, load
from ..data.metrics import agrees
from ..data.shipped import DEFAULT
from ..files import write_picture, write_text
from .hyperparameters import configure_methods
from .paths import FORCE, require_file, require_folder, require_picture
from .tables import show
from .view import kept_panels

if TYPE_CHECKING:
    from rich.table import Table

    from ..testbed import Question, Scene

    Run = tuple[str, float]  # method, keep

METHODS = ("idpruner", "random")
KEEPS = (0.25, 0.10)
_UNPRUNED: Run = ("stride", 1.0)
_BATCH = 25
_SAMPLES = 7


def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The folder for the scenes, their questions, and a picture of what is kept."
        ),
    ] = Path("foveate-demo"),
    force: FORCE = False,
) -> None:
    """Show what pruning keeps and what it costs, on a small model that comes with foveate: a minute on two cores."""
    from rich.console import Console

    from ..methods.toolkit.notes import silence_notes
    from ..testbed import scenes

    console = Console()
    require_folder(output, "-o")
    path = output / "kept.png"
    known = scenes()
    pictures = [output / "scenes" / f"{number:02}.png" for number in range(len(known))]
    for picture in (path, *pictures):
        require_picture(picture, "-o", force=force)
    questions, text = output / "scenes" / "questions.jsonl", _lines(known, pictures)
    require_file(questions, "-o", "questions.jsonl", force=force or _holds(questions, text))
    session = load(DEFAULT)
    size = session.model.num_parameters() / 1e6
    asked = [(scene, question) for scene in known for question in scene.questions]
    console.print(
        f"{len(asked)} questions about {len(known)} held-out scenes, asked of {DEFAULT} ({size:.1f} M parameters), "
        "which was trained on such scenes only. It shows how pruning works, not how well it does on photos."
    )
    with silence_notes():  # of the same methods again and again
        given = _answers(session, asked)
        _draw(session, known[0], path)
    for scene, picture in zip(known, pictures, strict=True):
        write_picture(picture, scene.image)
    write_text(questions, text)
    show(console, _accuracy(given, [question.answer for _, question in asked]))
    show(console, _samples(given, asked))
    console.print("Ask the first scene yourself:", style="bold")
    typer.echo(f'foveate ask {pictures[0]} "{_sentence(_to_ask(known[0]).text)}" --keep 25% --compare')
    console.print("What is kept of it:", style="bold")
    typer.echo(str(path))


def _lines(known: Sequence[Scene], pictures: Sequence[Path]) -> str:
    """The questions about the scenes, as `foveate eval --dataset` and `foveate train scorer --data` read them."""
    entries = (
        {
            "image": picture.name,
            "family": question.family,
            "question": _sentence(question.text),
            "answer": question.answer,
        }
        for scene, picture in zip(known, pictures, strict=True)
        for question in scene.questions
    )
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def _holds(path: Path, text: str) -> bool:
    """Whether the file at `path` is what it would become."""
    return path.is_file() and path.read_bytes() == text.encode()


def _answers(session: LoadedModel, asked: list[tuple[Scene, Question]]) -> dict[Run, list[str]]:
    """All answers of every run."""
    from rich.console import Console
    from rich.progress import Progress

    from ..api import prune
    from ..data import Prompt, answers
    from ..methods import get_method

    runs = [_UNPRUNED, *((method, keep) for keep in KEEPS for method in METHODS)]
    prompts = [Prompt([scene.image], question.text) for scene, question in asked]
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
        right = sum(agrees("exact", said, true) for said, true in zip(given[run], truth, strict=True))
        return f"{right}/{len(truth)} ({right / len(truth):.1%})"

    table = Table(title="Right answers", title_justify="left")
    for heading in ("kept tokens", *METHODS):
        table.add_column(heading, justify="right")
    table.add_row("100%", *[score(_UNPRUNED)] * len(METHODS))
    for keep in KEEPS:
        table.add_row(f"{keep:.0%}", *(score((method, keep)) for method in METHODS))
    return table


def _samples(given: dict[Run, list[str]], asked: list[tuple[Scene, Question]]) -> Table:
    """One question of each family: the truth, and the answers with all and with fewest tokens; wrong ones in red."""
    from rich.table import Table
    from rich.text import Text

    families: dict[str, int] = {}
    for index, (_, question) in enumerate(asked):
        families.setdefault(question.family, index)
    table = Table(title="Some of the answers (!: wrong)", title_justify="left")
    fewest = min(KEEPS)
    shown = [_UNPRUNED, *((method, fewest) for method in METHODS)]
    for heading in ("question", "truth", "all tokens", *(f"{method} {fewest:.0%}" for method in METHODS)):
        table.add_column(heading)
    for index in list(families.values())[:_SAMPLES]:
        question = asked[index][1]
        said = (given[run][index] for run in shown)
        judged = (Text(one) if agrees("exact", one, question.answer) else Text(f"{one} !", style="red") for one in said)
        table.add_row(_sentence(question.text), question.answer, *judged)
    return table


def _to_ask(scene: Scene) -> Question:
    """One of a scene's questions, to count something if possible."""
    return next((question for question in scene.questions if question.family == "counting"), scene.questions[0])


def _sentence(question: str) -> str:
    """The question as people write it; the model reads it alike."""
    return question[0].upper() + question[1:]


def _draw(session: LoadedModel, scene: Scene, path: Path) -> None:
    """The scene, and what idpruner keeps at each ratio, with random beside the last."""
    from ..visualize import comparison

    question, methods = _to_ask(scene).text, configure_methods(METHODS, ())
    first, *others = KEEPS
    panels = kept_panels(session, scene.image, question, methods[:1], first)
    for keep in others:
        panels += kept_panels(session, scene.image, question, methods, keep)[1:]
    write_picture(path, comparison(panels))
