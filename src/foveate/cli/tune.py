"""``foveate tune``: the smallest budget, and the method, that keep a share of the unpruned accuracy."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.loading import TESTBED, LoadOptions, load, require_model
from ..data.samples import samples_file
from ..data.shipped import DEFAULT
from .early import complete_method, parts, require_budgets, require_methods, require_settings
from .errors import InputError, going_on
from .eval import ALL, choose_methods, choose_suite, keep_askable, pair, read_dataset
from .hyperparameters import SETTINGS
from .model_options import DEVICE, DEVICE_MAP, DTYPE, MAX_PIXELS, MODEL
from .paths import require_folder
from .question_options import BATCH, DATASET, FAMILIES, MAX_NEW_TOKENS, METRIC, SKIP_BAD, SUFFIX
from .tables import count, show

if TYPE_CHECKING:
    from ..evaluation.tuner import Candidate, Tuning

BUDGETS = "50%,35%,25%,15%,10%,5%"
_TESTBED_QUESTIONS = 1000  # to draw from: most are never asked of most methods


def tune(
    model: MODEL = DEFAULT,
    dataset: DATASET = None,
    suite: Annotated[str | None, typer.Option(help="Questions that come with foveate; see `foveate eval`.")] = None,
    floor: Annotated[str, typer.Option(help="The share of the unpruned accuracy to keep.")] = "99%",
    confidence: Annotated[str, typer.Option(help="With which what is chosen keeps it.")] = "95%",
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            "--method",
            help="Pruning methods to choose from, separated by commas, or all.",
            show_default=ALL,
            autocompletion=complete_method,
        ),
    ] = None,
    budgets: Annotated[
        str, typer.Option("--budgets", "--keep", help="Budgets to choose from, separated by commas.")
    ] = BUDGETS,
    settings: SETTINGS = None,
    questions: Annotated[
        int | None,
        typer.Option(
            min=1, help="Draw from at most this many questions.", show_default="1000 of the testbed, else all"
        ),
    ] = None,
    families: FAMILIES = None,
    per_image: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ask at most this many questions about each image, by chance.",
            show_default="1 of the testbed, else all",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the questions, and of generated scenes.")] = 0,
    metric: METRIC = None,
    suffix: SUFFIX = "",
    skip_bad: SKIP_BAD = False,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The folder of the choice and of all answers, which are not asked again."),
    ] = Path("foveate-tune"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    batch: BATCH = 32,
    max_new_tokens: MAX_NEW_TOKENS = 32,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each loads the model anew in every round.")] = 1,
    device: DEVICE = None,
    dtype: DTYPE = None,
    device_map: DEVICE_MAP = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Choose the smallest budget, and the method, that keep a share of the unpruned accuracy.

    With a probability of 95 % or more what is chosen keeps it, on images and questions like yours. Most methods are
    asked few of the questions. The choice is written to foveate_config.json in the folder, for --config, foveate.prune
    and vLLM. Run the same command again to resume. The exit code is 1 where nothing is sure to keep it: keep all
    tokens then.
    """
    options = LoadOptions(device, dtype, device_map, max_pixels)
    require_model(model)
    require_settings(settings)
    named = ALL if methods is None else methods
    if named.strip() != ALL:
        require_methods(parts(named, "--methods"))
    require_budgets(parts(budgets, "--budgets"))
    least, sure = _share(floor, "--floor", whole=True), _share(confidence, "--confidence", whole=False)
    if (dataset is None) == (suite is None):
        raise InputError("give either --dataset FILE, a JSONL file or its folder, or --suite (such as testbed).")
    if dataset is not None:
        samples_file(dataset)
    require_folder(output, "-o", [] if dataset is None else [dataset])

    from ..evaluation.runner import Evaluation
    from ..evaluation.runs import format_keep
    from ..evaluation.storage import require_evaluation
    from ..evaluation.tuner import tune as search

    require_evaluation(output)
    keeps = tuple(dict.fromkeys(map(format_keep, parts(budgets, "--budgets"))))
    chosen, unable = choose_methods(named, settings or ())
    wanted = parts(families, "--families") if families else None
    own = read_dataset(suite, dataset, questions, seed, wanted, metric, suffix, skip_bad)
    session = load(model, options)
    if own is not None and dataset is not None:
        own = keep_askable(own, dataset, session, skip_bad)
    generated = str(suite).startswith(TESTBED)
    drawn = _TESTBED_QUESTIONS if questions is None and generated else questions
    asked = own or choose_suite(str(suite), drawn, seed, wanted, session, (per_image or 1) if generated else None)
    evaluation = Evaluation(
        asked, session.label, chosen, keeps, seed, 0, batch, max_new_tokens, workers=workers, unable=unable
    )
    loader = functools.partial(pair, model, options)
    with going_on(), _bar() as (on_round, advance):
        found = search(
            evaluation,
            loader,
            output,
            least,
            sure,
            per_image,
            advance,
            (session.model, session.processor),
            on_round=on_round,
        )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _show(found, output)
    raise typer.Exit(int(found.chosen is None))


def _share(text: str, option: str, whole: bool) -> float:
    """``99%`` or ``0.99`` as 0.99; raises InputError for what is not between 0 and 1."""
    try:
        found = float(text[:-1]) / 100 if text.strip().endswith("%") else float(text)
    except ValueError:
        found = -1.0
    if not (0 < found < 1 or (whole and found == 1)):
        given = text.strip() or "''"
        raise InputError(f"{option} {given} is not a share between 0 and 1; write it as 99% or 0.99.")
    return found


def _show(found: Tuning, output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    floor, sure = f"{100 * found.floor:.4g} %", f"{100 * found.confidence:.4g} %"
    ranked = sorted(
        (one for one in found.candidates if one.state != "refused"),
        key=lambda one: (one.tokens or 1, -(one.share or 0)),
    )
    table = Table(title=f"Share of the unpruned accuracy ({100 * found.accuracy:.1f} %)", title_justify="left")
    table.add_column("method", no_wrap=True)
    for heading in ("budget", "visual tokens", "kept", "questions"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for one in ranked:
        share = "" if one.share is None else f"{100 * one.share:.1f} %"
        tokens = "" if one.tokens is None else f"{100 * one.tokens:.0f} %"
        table.add_row(one.method, one.keep, tokens, share, str(one.questions), _said(one, found))
    show(Console(), table)
    for name, why in dict.fromkeys((one.method, one.why) for one in found.candidates if one.state == "refused"):
        typer.echo(f"Not in the table: {name} ({why.rstrip('.')}).")
    asked = f"{found.asked} of {count(found.questions, 'question')}, {found.answers} answers"
    asked += f": {found.answers / found.grid:.0%}"
    typer.echo(f"Asked {asked} of those that all methods at all budgets would have needed.")
    if found.chosen is None:
        typer.echo(f"No budget keeps {floor} at {sure} confidence: keep all tokens. {_advice(found)}")
        return
    one = found.chosen
    typer.echo(f"{one.method} at {one.keep} keeps {floor} of the unpruned accuracy, at {sure} confidence.")
    typer.echo(f"Written to {output / 'foveate_config.json'}; use it with --config, or in Python:")
    typer.echo(f"foveate.prune(model, foveate.PruningConfig.from_pretrained({str(output)!r}))")


def _said(one: Candidate, found: Tuning) -> str:
    if one == found.chosen:
        return "chosen"
    if one.state == "asked":
        return "not sure"
    if one.state == "hopeless":
        if not found.accuracy:
            return "nothing to keep"
        return "too few questions" if _kept(one, found) else "loses too much"
    return one.state


def _kept(one: Candidate, found: Tuning) -> bool:
    """Whether a candidate kept the floor on what it was asked, sure or not."""
    return one.share is not None and one.share >= found.floor


def _advice(found: Tuning) -> str:
    """What may help where nothing was shown."""
    if not found.accuracy:
        return "The unpruned model answered none of the questions as expected; look at --metric, --suffix and --model."
    near = [one for one in found.candidates if _kept(one, found)]
    if not near:
        return "Try larger --budgets, or a lower --floor."
    best = max(near, key=lambda one: (one.questions, one.share or 0))
    seen = f"{best.method} at {best.keep} kept {100 * (best.share or 0):.1f} % on {count(best.questions, 'question')}"
    if found.floor == 1:
        return f"{seen}, but 100 % is shown only by answering better than unpruned; give a --floor such as 99%."
    return (
        f"{seen}, too few to be sure; give more questions, about more images, fewer --methods, larger --budgets, or a "
        "lower --floor."
    )


@contextmanager
def _bar() -> Iterator[tuple[Callable[[int, int, int], None], Callable[[int, int], None]]]:
    """A progress bar on stderr: a line for each round."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: Any = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("Asking", total=None)

        def on_round(asked: int, new: int, candidates: int) -> None:
            which = f"Questions {asked + 1} to {asked + new}" if new > 1 else f"Question {asked + 1}"
            progress.update(task, description=f"{which}, {count(candidates, 'way')} to prune")

        def advance(done: int, whole: int) -> None:
            progress.update(task, completed=done, total=whole)

        yield on_round, advance
