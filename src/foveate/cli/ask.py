"""``foveate ask``: one question about pictures, answered with fewer visual tokens, and what that saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.images import open_image
from ..data.limits import unknown_words
from ..data.loading import MODEL_HELP, LoadedModel, load
from ..data.shipped import DEFAULT
from .errors import InputError
from .hyperparameters import CONFIG, KEEP, METHOD, SCOPE, SETTINGS, config_at, configure_methods
from .tables import show

if TYPE_CHECKING:
    from rich.table import Table

    from ..runtime import Report

Row = tuple[str, Callable[["Report"], float], str]


def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="One or several pictures, then the question, such as 'How many stars are there?'.",
        ),
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT,
    method: METHOD = None,
    keep: KEEP = None,
    scope: SCOPE = None,
    settings: SETTINGS = None,
    config: CONFIG = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also answer without pruning.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
) -> None:
    """Answer a question about pictures with only some of their visual tokens."""
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    from ..api import prune
    from ..budget import Budget
    from ..config import PruningConfig

    *images, question = words
    if not images:
        raise InputError(f"{question!r} alone is no picture with a question; give: IMAGE... QUESTION.")
    asked = config_at(config, {"--method": method, "--keep": keep, "--scope": scope, "--set": settings})
    if asked is None:
        (chosen,) = configure_methods(["idpruner" if method is None else method], settings or ())
        asked = PruningConfig(chosen, Budget("25%" if keep is None else keep, scope))  # type: ignore[arg-type]
    pictures = [open_image(Path(path)) for path in images]
    session = load(model)
    inputs = session.inputs(pictures, question)
    console, progress = Console(), Console(stderr=True)
    warn_of_unknown_words(session, question)
    panels, full = [], None
    if compare:
        with progress.status("Answering with all tokens"):
            session.generate(inputs, 1)  # warms up, so that both timings are fair
            with prune(session.model, "stride", keep=1.0) as pruning:
                text = session.generate(inputs, max_new_tokens)
                full = pruning.report()
        panels.append(Panel(Text(text or "(no answer)"), title="all tokens", border_style="dim"))
    with prune(session.model, asked) as pruning:
        with progress.status(f"Answering with {asked.label}"):
            text = session.generate(inputs, max_new_tokens)
        pruned = pruning.report()

    title = f"{asked.label}, {pruned.tokens} of {pruned.tokens_before} visual tokens"
    panels.append(Panel(Text(text or "(no answer)"), title=title, border_style="green"))
    console.print(Columns(panels, equal=True, width=max(32, console.width // 2 - 2) if compare else None))
    if len(pruned.images) > 1:
        console.print(f"kept of each picture: {', '.join(str(image.tokens) for image in pruned.images)}")
    show(console, _savings(pruned, full))


def warn_of_unknown_words(session: LoadedModel, question: str) -> None:
    """Say on stderr which words of the question the model cannot read; small models know few."""
    if unknown := unknown_words(session.processor.tokenizer, question):
        shown = ", ".join(map(repr, unknown))
        typer.echo(f"The model does not know {shown}; ask what it was trained for, or another --model.", err=True)


def _savings(pruned: Report, full: Report | None) -> Table:
    """Costs without pruning, with it, and what is left; times without pruning are known only when both ran."""
    from rich.table import Table

    table = Table(title="What pruning saves in the prefill", title_justify="left")
    table.add_column("cost")
    for heading in ("all tokens", "pruned", "left"):
        table.add_column(heading, justify="right")

    def add(name: str, before: float | None, after: float, shown: str) -> None:
        left = f"{after / before:.0%}" if before else ""
        table.add_row(name, "not run" if before is None else format(before, shown), format(after, shown), left)

    add("visual tokens", pruned.tokens_before, pruned.tokens, ".0f")
    add("prompt tokens", sum(pruned.prompt_tokens_before), sum(pruned.prompt_tokens), ".0f")
    add("text GFLOPs", pruned.text_flops_before / 1e9, pruned.text_flops / 1e9, ".3g")
    add("vision GFLOPs", pruned.vision_flops_before / 1e9, pruned.vision_flops / 1e9, ".3g")
    add("KV cache MB", pruned.kv_bytes_before / 1e6, pruned.kv_bytes / 1e6, ".3g")
    timed: tuple[Row, ...] = (
        ("encoder ms", lambda report: report.encoder_seconds * 1e3, ".1f"),
        ("selection ms", lambda report: report.selection_seconds * 1e3, ".1f"),
        ("LLM prefill ms", lambda report: report.prefill_seconds * 1e3, ".1f"),
    )
    for name, read, shown in timed:
        add(name, None if full is None else read(full), read(pruned), shown)
    return table
