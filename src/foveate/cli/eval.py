"""``foveate eval``: what pruning costs a model in right answers, by method and budget, with intervals."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..cluster import connect, require_ray
from ..data.loading import TESTBED, LoadedModel, LoadOptions, load, require_model
from ..data.samples import samples_file
from ..data.shipped import DEFAULT
from ..errors import near_miss
from .early import complete_method, parts, require_budgets, require_methods, require_settings
from .errors import InputError, going_on
from .eval_output import announce, bar, left_out, show
from .hyperparameters import CONFIG, SETTINGS, config_at, configure_methods, hyperparameters
from .model_options import DEVICE, DEVICE_MAP, DTYPE, MAX_PIXELS, MODEL
from .on_ray import ADDRESS
from .paths import require_folder
from .question_options import BATCH, DATASET, FAMILIES, MAX_NEW_TOKENS, METRIC, SKIP_BAD, SUFFIX

if TYPE_CHECKING:
    from ..config import PruningConfig
    from ..evaluation.report import Report
    from ..evaluation.suites import Suite
    from ..methods import Method

ALL, KEEPS = "all", "50%,25%,10%,5%"


def evaluate(
    model: MODEL = DEFAULT,
    suite: Annotated[
        str | None,
        typer.Option(help="testbed or testbed-hard: generated scenes; scenes: those of `foveate demo`."),
    ] = None,
    dataset: DATASET = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            "--method",
            help="Pruning methods, separated by commas, or all.",
            show_default=ALL,
            autocompletion=complete_method,
        ),
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Budgets, separated by commas.", show_default=KEEPS)] = None,
    settings: SETTINGS = None,
    config: CONFIG = None,
    without_question: Annotated[
        bool,
        typer.Option(
            "--without-question",
            help="Run methods that read the prompt's text a second time, in which they do not see the question, and "
            "others once.",
        ),
    ] = False,
    questions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ask at most this many questions.",
            show_default="140 of the testbed, 2000 with --gate, else all",
        ),
    ] = None,
    families: FAMILIES = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for generating scenes or sampling your questions.")] = 0,
    metric: METRIC = None,
    suffix: SUFFIX = "",
    skip_bad: SKIP_BAD = False,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The folder of the results. What it holds already is kept, not asked again."
        ),
    ] = Path("foveate-eval"),
    against: Annotated[
        str | None,
        typer.Option(help="The method that others are compared with.", show_default="idpruner, else the first"),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="What plots are written as: png, svg or pdf, or several with commas.")
    ] = "png",
    gate: Annotated[
        bool, typer.Option("--gate", help="Fail unless the model passes the gate of docs/notes/testbed.md.")
    ] = False,
    batch: BATCH = 32,
    max_new_tokens: MAX_NEW_TOKENS = 32,
    random_seeds: Annotated[int, typer.Option(min=1, help="How many times random tokens are drawn.")] = 3,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes.",
            show_default="one a core for small models on a CPU, else 1; with Ray one a GPU, else one a machine",
        ),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Divide the questions among workers on Ray; answers are the same.")
    ] = False,
    address: ADDRESS = None,
    device: DEVICE = None,
    dtype: DTYPE = None,
    device_map: DEVICE_MAP = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Measure what pruning costs in right answers. Run the same command again to resume.

    The 140 questions of --suite testbed, with all methods at four budgets, take some minutes on two cores; how long a
    run will take is told while it runs.

    A line of --dataset has "image" (a path, or a list of them) or "video" (a folder of frames), "question", and
    "answer" (a text, or a list of accepted ones). It may have "metric" (exact; contains: the answer holds an accepted
    one; iou: a box), "family" (a kind of question, reported alone), "group" (lines that hang together, by default those
    of one picture; intervals are over groups) and "id".
    """
    options = LoadOptions(device, dtype, device_map, max_pixels)
    require_model(model)
    require_settings(settings)
    if methods is not None and methods.strip() != ALL:
        require_methods(parts(methods, "--methods"))
    require_budgets(parts(KEEPS if keep is None else keep, "--keep"))
    if (dataset is None) == (suite is None):
        raise InputError("give either --suite (such as testbed) or --dataset FILE, a JSONL file or its folder.")
    if dataset is not None:
        samples_file(dataset)  # refuses what is missing before torch is loaded; its lines are read later

    from rich.console import Console

    from ..evaluation.advice import advice
    from ..evaluation.gate import QUESTIONS
    from ..evaluation.html_report import write_html
    from ..evaluation.plots import require_extra, require_formats, write_report
    from ..evaluation.ray_workers import RayWorkers
    from ..evaluation.report import Report
    from ..evaluation.runner import Evaluation
    from ..evaluation.runner import evaluate as run
    from ..evaluation.runs import BASELINES, format_keep
    from ..evaluation.storage import require_evaluation
    from ..evaluation.unasked import Unasked, reads_text

    require_extra()  # before hours are spent
    plots = list(dict.fromkeys(parts(formats.lower(), "--format")))
    require_formats(plots)
    on_ray = ray or address is not None
    if on_ray:
        require_ray()
    require_folder(output, "-o", [] if dataset is None else [dataset])
    require_evaluation(output)
    if gate and suite != TESTBED:
        raise InputError("--gate is about the testbed's models; give --suite testbed.")
    given = config_at(config, {"--methods": methods, "--keep": keep, "--set": settings})
    budgets: Sequence[Any] = parts(KEEPS if keep is None else keep, "--keep") if given is None else given.budgets
    keeps = tuple(dict.fromkeys(map(format_keep, budgets)))
    named = ALL if methods is None and given is None else methods
    chosen, unable = choose_methods(str(named), settings or ()) if given is None else ((_evaluable(given),), ())
    if without_question:
        readers = [one for one in chosen if reads_text(one)]
        if not readers:
            _refuse_unread(chosen)
        chosen = (*chosen, *(Unasked(one) for one in readers))
    if against is not None and against not in (*BASELINES, *(method.name for method in chosen)):
        raise InputError(f"--against {against} is not among the methods evaluated; name it in --methods, too.")
    wanted = parts(families, "--families") if families else None
    own = read_dataset(suite, dataset, questions, seed, wanted, metric, suffix, skip_bad)
    session = load(model, options)
    if str(named).strip() != ALL:  # of all, those that cannot run are listed
        _require_attachable(session, chosen, keeps)
    if own is not None and dataset is not None:
        own = keep_askable(own, dataset, session, skip_bad)
    if questions is None and gate:
        questions = QUESTIONS
    asked = own or choose_suite(str(suite), questions, seed, wanted, session)
    evaluation = Evaluation(
        asked, session.label, chosen, keeps, seed, random_seeds, batch, max_new_tokens, workers, unable
    )
    announce(evaluation)
    loader = functools.partial(pair, model, options)
    with going_on(), connect(address) if on_ray else nullcontext() as cluster, bar() as advance:
        answer = None if cluster is None else RayWorkers(cluster, workers)
        results = run(evaluation, loader, output, advance, (session.model, session.processor), answer)
    report = Report(results, against)
    path = write_report(report, output, plots)
    page = write_html(report, output, asked.samples, getattr(session.processor, "image_processor", None))
    show(report, Console())
    for sentence in (report.caution(), *left_out(report), *advice(results)):
        if sentence:
            typer.echo(sentence)
    typer.echo(f"All answers, tables and plots: {path}")
    typer.echo(f"Every question with its picture, for a browser: {page}")
    passed = not gate or _passes_gate(report)
    raise typer.Exit(int(not passed or bool(results.failed)))


def _refuse_unread(methods: Sequence[Method]) -> None:
    """Raise FoveateError, which says why none of the methods has a form without the question."""
    from ..evaluation.unasked import Unasked

    if len(methods) == 1:
        Unasked(methods[0])  # whose sentence says more
    raise InputError(
        f"--without-question: none of {', '.join(one.name for one in methods)} prunes before the LLM by the prompt's "
        "text; add one that does, such as 'cdpruner', or leave the option out."
    )


def _require_attachable(session: LoadedModel, methods: Sequence[Method], keeps: Sequence[str]) -> None:
    """Attach every method at every budget once: what cannot run is refused before anything is asked."""
    from ..api import attach
    from ..methods.toolkit.notes import silence_notes

    for method, keep in itertools.product(methods, keeps):
        with nullcontext() if keep == keeps[0] else silence_notes():
            attach(session.model, method, keep=keep).detach()


def _passes_gate(report: Report) -> bool:
    """Print whether the model passes the gate, and if not, why."""
    from ..evaluation.gate import find_failures

    reasons = find_failures(report)
    typer.echo("\n".join(["The gate is not passed:", *reasons]) if reasons else "The gate is passed.")
    return not reasons


def _evaluable(config: PruningConfig) -> Method:
    """The method of a configuration; raises InputError for what an evaluation does not vary."""
    from ..config import PruningConfig
    from ..methods import Method

    if not isinstance(config.method, Method):
        raise InputError(f"--config: {config.label} are several methods, and an evaluation is of one at a time.")
    if config != PruningConfig(config.method, config.keep):
        raise InputError(
            "--config: an evaluation has scope='image', positions='original' and all encoder_queries; leave them out."
        )
    return config.method


def pair(name: str, options: LoadOptions) -> tuple[Any, Any]:
    """A model and its processor, for each worker."""
    session = load(name, options)
    return session.model, session.processor


def choose_methods(names: str, settings: Sequence[str]) -> tuple[tuple[Method, ...], tuple[tuple[str, str], ...]]:
    """The methods, and of all that there are those which lack something, with the sentence that says what.

    Raises:
        MethodError: for an unknown name, and for one that is named but lacks something.
    """
    from ..errors import MethodError
    from ..methods import get_method, method_names

    if names.strip() != ALL:
        return tuple(configure_methods(parts(names, "--methods"), settings)), ()
    made: list[Method] = []
    unable: list[tuple[str, str]] = []
    for name, values in hyperparameters(method_names(), settings).items():
        try:
            made.append(get_method(name, **values))
        except MethodError as error:
            unable.append((name, str(error)))
    return tuple(made), tuple(unable)


def read_dataset(
    name: str | None,
    folder: Path | None,
    questions: int | None,
    seed: int,
    families: Sequence[str] | None,
    metric: str | None,
    suffix: str,
    skip_bad: bool,
) -> Suite | None:
    """The questions of one's own, where they are asked; all of their pictures can be opened.

    Raises:
        InputError: for options that only a dataset has.
        EvaluationError: for an unknown family.
        SampleError: for lines that cannot be used.
    """
    from ..evaluation.suites import SUITES, dataset

    if folder is not None:
        judged: Any = "exact" if metric is None else metric  # checked there
        return dataset(folder, questions, seed, families, judged, suffix.strip(), skip_bad)
    for given, option in ((metric, "--metric"), (suffix, "--suffix"), (skip_bad, "--skip-bad")):
        if given:
            raise InputError(f"{option} is about questions of your own; give --dataset instead of --suite.")
    if name not in SUITES:
        raise InputError(f"unknown suite {name!r}{near_miss(str(name), SUITES)}")
    return None


def keep_askable(own: Suite, folder: Path, session: LoadedModel, skip_bad: bool) -> Suite:
    """Of the questions of one's own those that the model can be asked.

    Raises:
        SampleError: for others, unless they may be left out.
    """
    from ..data.askable import askable

    left, bad = askable(session.processor, own.samples, own.skipped, folder, skip_bad)
    return replace(own, samples=tuple(left), skipped=tuple(bad))


def choose_suite(
    name: str,
    questions: int | None,
    seed: int,
    families: Sequence[str] | None,
    session: LoadedModel,
    per_scene: int | None = None,
) -> Suite:
    """The questions of a suite that the model can be asked.

    Raises:
        EvaluationError: for an unknown family.
    """
    from ..evaluation.suites import suite
    from ..models import adapter_of

    return suite(name, questions, seed, families, "video" in adapter_of(session.model).modalities, per_scene)
