"""``foveate ask``: one question about pictures, answered with fewer visual tokens, and what that saved."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.clips import open_clip
from ..data.images import open_image
from ..data.limits import list_words, unknown_words
from ..data.loading import LoadedModel, LoadOptions, load, require_model
from ..data.shipped import DEFAULT, shipped_models
from .early import parts, require_budgets, require_methods, require_settings
from .errors import InputError
from .hyperparameters import CONFIG, KEEPS, METHODS, SCOPE, SETTINGS, config_at, configure_methods
from .model_options import DEVICE, DEVICE_MAP, DTYPE, MAX_PIXELS, MODEL
from .tables import show

if TYPE_CHECKING:
    from rich.table import Table

    from ..config import PruningConfig
    from ..runtime import Report

VIDEO = Annotated[
    Path | None,
    typer.Option("--video", help="A clip to ask about, in the place of pictures: a folder of frames, or a video file."),
]
FRAMES = Annotated[int, typer.Option(min=1, help="At most so many frames of the clip, evenly spread.")]


@dataclass(frozen=True)
class Answer:
    """What was answered with one configuration; without one, with all tokens."""

    config: PruningConfig | None
    text: str
    report: Report

    @property
    def label(self) -> str:
        """The configuration in a few words."""
        return "all tokens" if self.config is None else label_of(self.config)

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        config = None if self.config is None else self.config.to_dict()
        return {"pruning": config, "answer": self.text, "report": self.report.to_dict()}


def label_of(config: PruningConfig) -> str:
    """The methods of a configuration and what they keep, ``idpruner 25%``."""
    return f"{config.label} {budgets_of(config)}"


def budgets_of(config: PruningConfig) -> str:
    """What the methods of a configuration keep, ``25%``."""
    return ", ".join(budget.label for budget in config.budgets)


def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="One or several pictures, then the question, such as 'How many stars are there?'.",
        ),
    ],
    model: MODEL = DEFAULT,
    methods: METHODS = None,
    keep: KEEPS = None,
    scope: SCOPE = None,
    settings: SETTINGS = None,
    config: CONFIG = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also answer without pruning.")] = False,
    video: VIDEO = None,
    frames: FRAMES = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    device: DEVICE = None,
    dtype: DTYPE = None,
    device_map: DEVICE_MAP = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Answer a question about pictures with only some of their visual tokens.

    Of several methods and budgets each answers at each.
    """
    options = LoadOptions(device, dtype, device_map, max_pixels)
    names = parts("idpruner" if methods is None else methods, "--method")
    keeps = parts("25%" if keep is None else keep, "--keep")
    require_methods(names)
    require_budgets(keeps, scope)
    require_settings(settings)
    require_model(model)
    *images, question = words
    if video is None and not images:
        missing = "question" if Path(question).is_file() else "picture"
        raise InputError(
            f"{question!r} alone is no picture with a question; give the {missing}, too: IMAGE... QUESTION."
        )
    if video is not None and images:
        raise InputError(f"--video {video} and the picture {images[0]} exclude each other; ask about one of them.")
    if not question.strip():
        raise InputError("the question is empty; write one behind the pictures, such as 'What is on the sign?'.")
    pictures = [open_image(Path(path)) for path in images] if video is None else open_clip(video, frames)

    from rich.console import Console

    from ..budget import Budget
    from ..config import PruningConfig

    given = config_at(config, {"--method": methods, "--keep": keep, "--scope": scope, "--set": settings})
    asked = [given] if given else []
    if given is None:
        chosen = configure_methods(names, settings or ())
        asked = [
            PruningConfig(one, Budget(amount, scope))  # type: ignore[arg-type]  # checked there
            for one, amount in itertools.product(chosen, keeps)
        ]
    session = load(model, options)
    inputs = session.inputs(pictures, question, video is not None)
    warn_of_unknown_words(session, question)
    answers = _answer(session, inputs, asked, compare, max_new_tokens)
    if as_json:
        told = {"model": session.label, "question": question, "answers": [one.to_dict() for one in answers]}
        typer.echo(json.dumps(told, indent=2))
        return
    console = Console()
    _print_answers(console, answers)
    if model in shipped_models():
        console.print(f"[dim]{model} is small and knows drawn scenes only; for photographs name another --model.[/dim]")
    show(console, _costs(answers))


def warn_of_unknown_words(session: LoadedModel, question: str) -> None:
    """Say on stderr which words of the question the model cannot read; small models know few."""
    if unknown := unknown_words(session.processor.tokenizer, question):
        typer.echo(
            f"The model does not know {list_words(unknown)}; ask what it was trained for, or another --model.", err=True
        )


def _answer(
    session: LoadedModel, inputs: dict[str, Any], asked: Sequence[PruningConfig], compare: bool, max_new_tokens: int
) -> list[Answer]:
    """With all tokens, where that is compared, then with each configuration; all are refused before any is run."""
    from rich.console import Console

    from ..api import prune
    from ..methods.toolkit.notes import silence_notes

    progress, answers = Console(stderr=True), []
    if compare or len(asked) > 1:
        with silence_notes():  # which are told when each is attached to answer
            for config in asked:
                prune(session.model, config).detach()
        with progress.status("Warming up"):
            session.generate(inputs, 1)  # so that all timings are fair
    if compare:
        with progress.status("Answering with all tokens"), prune(session.model, "stride", keep=1.0) as pruning:
            text = session.generate(inputs, max_new_tokens)
            answers.append(Answer(None, text, pruning.report()))
    for config in asked:
        with progress.status(f"Answering with {label_of(config)}"), prune(session.model, config) as pruning:
            text = session.generate(inputs, max_new_tokens)
            answers.append(Answer(config, text, pruning.report()))
    return answers


def _print_answers(console: Any, answers: Sequence[Answer]) -> None:
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    panels, titles = [], []
    budgets = {one.config.budgets for one in answers if one.config is not None}
    for one in answers:
        name = one.label if one.config is None or len(budgets) > 1 else one.config.label
        kept = "" if one.config is None else f", {one.report.tokens} of {one.report.tokens_before} visual tokens"
        style = "dim" if one.config is None else "green"
        titles.append(name + kept)
        panels.append(Panel(Text(one.text or "(no answer)"), title=titles[-1], border_style=style))
    longest = max(map(len, titles)) + 6  # with what a frame puts around its title, so that no number is cut off
    width = min(console.width, max(longest, console.width // 2 - 2)) if len(panels) > 1 else None
    console.print(Columns(panels, equal=True, width=width))
    for one in answers:
        if one.config is not None and len(one.report.images) > 1:
            kept = ", ".join(str(image.tokens) for image in one.report.images)
            whose = f" by {one.label}" if len(answers) > 2 else ""
            console.print(f"kept of each picture{whose}: {kept}")


Read = Callable[["Report"], float]


def _costs(answers: Sequence[Answer]) -> Table:
    """What the prefill costs without pruning and with each configuration, and what share of it is left.

    Times without pruning are known only where it was compared.
    """
    from rich.table import Table

    full = next((one.report for one in answers if one.config is None), None)
    pruned = [one for one in answers if one.config is not None]
    table = Table(title="What pruning saves in the prefill", title_justify="left")
    table.add_column("cost")
    table.add_column("all tokens", justify="right")
    for one in pruned:
        table.add_column(one.label, justify="right")
        table.add_column("left", justify="right")

    def add(name: str, before: float | None, read: Read, shown: str) -> None:
        cells = [format(before, shown) if before is not None else "not run"]
        for one in pruned:
            after = read(one.report)
            cells += [format(after, shown), f"{after / before:.0%}" if before else ""]
        table.add_row(name, *cells)

    first = pruned[0].report
    add("visual tokens", first.tokens_before, lambda report: report.tokens, ".0f")
    add("prompt tokens", sum(first.prompt_tokens_before), lambda report: sum(report.prompt_tokens), ".0f")
    add("text GFLOPs", first.text_flops_before / 1e9, lambda report: report.text_flops / 1e9, ".3g")
    add("vision GFLOPs", first.vision_flops_before / 1e9, lambda report: report.vision_flops / 1e9, ".3g")
    add("KV cache MB", first.kv_bytes_before / 1e6, lambda report: report.kv_bytes / 1e6, ".3g")
    timed: tuple[tuple[str, Read], ...] = (
        ("encoder ms", lambda report: report.encoder_seconds * 1e3),
        ("selection ms", lambda report: report.selection_seconds * 1e3),
        ("LLM prefill ms", lambda report: report.prefill_seconds * 1e3),
    )
    for name, read in timed:
        add(name, None if full is None else read(full), read, ".1f")
    return table
