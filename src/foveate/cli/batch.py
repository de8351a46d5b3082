"""``foveate batch``: a file of questions about pictures answered offline, on one machine or on many."""

from __future__ import annotations

import importlib.util
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..cluster import connect, require_ray
from ..data.loading import MODEL_HELP
from ..data.shipped import DEFAULT
from ..errors import near_miss
from .early import require_budgets, require_methods, require_settings
from .errors import InputError, going_on
from .eval_output import bar
from .hyperparameters import CONFIG, KEEP, METHOD, SCOPE, SETTINGS, config_at, configure_methods
from .on_ray import ADDRESS
from .paths import require_folder

if TYPE_CHECKING:
    from ..serving.ray.batch import Summary

_FORMATS, _ENGINES = ("jsonl", "parquet"), ("vllm", "transformers")
_SHOWN = 5  # rows that failed, by name


def batch(
    rows: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="A JSONL or Parquet file, or a folder of Parquet files or of pictures."),
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT,
    method: METHOD = None,
    keep: KEEP = None,
    scope: SCOPE = None,
    settings: SETTINGS = None,
    config: CONFIG = None,
    question: Annotated[str | None, typer.Option(help="What is asked where a row has no question.")] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The folder of the results. What it holds already is not asked again."),
    ] = Path("foveate-batch"),
    format: Annotated[str, typer.Option(help="Of the results: jsonl or parquet.")] = "jsonl",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    chunk: Annotated[
        int, typer.Option("--batch", min=1, help="Rows asked at once, and again when a worker dies.")
    ] = 32,
    part: Annotated[int, typer.Option(min=1, help="Rows of a file of results.")] = 1024,
    engine: Annotated[
        str | None, typer.Option(help="vllm or transformers.", show_default="vllm where it and GPUs are there")
    ] = None,
    vllm: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="""Arguments of vLLM's engine, such as '{"max_model_len": 8192}'."""),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Models at work.", show_default="one a GPU, else one a machine")
    ] = None,
    address: ADDRESS = None,
) -> None:
    """Answer a file of questions about pictures on Ray. Run the same command again to resume.

    A row has "image" (a path, or a list of them; in Parquet the bytes of files, too) or "video" (a folder of frames),
    "question", and if you like "id". Rows that cannot be answered are listed with their lines, and asked again the next
    time; the exit code is then 1.
    """
    if method is not None:
        require_methods([method])
    require_settings(settings)
    require_budgets(["25%" if keep is None else keep], scope)

    from ..budget import Budget
    from ..config import PruningConfig
    from ..serving.ray.batch import answer_batch
    from ..serving.ray.job import Batch
    from ..serving.ray.results import require_batch
    from ..serving.ray.rows import Source
    from ..serving.ray.vllm_engine import check_engine

    for name, value, known in (("--format", format, _FORMATS), ("--engine", engine, _ENGINES)):
        if value is not None and value not in known:
            raise InputError(f"unknown {name} {value!r}{near_miss(value, known)}")
    source = Source.find(rows, question)
    require_folder(output, "-o", [rows])
    require_batch(output)
    pruning = config_at(config, {"--method": method, "--keep": keep, "--scope": scope, "--set": settings})
    if pruning is None:
        (chosen,) = configure_methods(["idpruner" if method is None else method], settings or ())
        pruning = PruningConfig(chosen, Budget("25%" if keep is None else keep, scope))  # type: ignore[arg-type]
    require_ray()
    with going_on(), ExitStack() as stack:
        if engine is None:
            several = importlib.util.find_spec("vllm") is not None
            engine = "vllm" if several and stack.enter_context(connect(address)).gpus else "transformers"
        if engine == "vllm":
            check_engine(pruning.to_dict())
        elif vllm is not None:
            raise InputError("--vllm is for vLLM engines; give --engine vllm, too.")
        asked = Batch(
            source,
            model,
            pruning.to_dict(),
            engine,  # type: ignore[arg-type]
            max_new_tokens,
            chunk,
            part,
            format,  # type: ignore[arg-type]
            workers,
            _arguments(vllm),
        )
        advance = stack.enter_context(bar())
        summary = answer_batch(asked, output, lambda: stack.enter_context(connect(address)), advance)
    for sentence in _describe(summary):
        typer.echo(sentence)
    typer.echo(f"All answers: {output}/part-*.{format}")
    raise typer.Exit(int(bool(summary.failed)))


def _arguments(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"--vllm is not JSON ({error}); write it as '{{\"max_model_len\": 8192}}'.") from None
    if not isinstance(found, dict):
        raise InputError("--vllm must be a JSON object, such as '{\"max_model_len\": 8192}'.")
    return found


def _describe(summary: Summary) -> list[str]:
    """What became of the batch, in sentences."""
    before = f", {summary.before:,} before" if summary.before else ""
    said = [f"{summary.rows:,} rows: {summary.answered:,} answered{before}, {summary.failed:,} failed."]
    if summary.tokens_before:
        share = summary.tokens / summary.tokens_before
        said.append(f"{summary.tokens:,} of {summary.tokens_before:,} visual tokens were kept ({share:.1%}).")
    if summary.rate is not None and summary.hours_per_million is not None:
        each = "worker" if summary.workers == 1 else "workers"
        said.append(
            f"{summary.rate:.3g} rows a second by {summary.workers} {each} once they had loaded: a million rows take "
            f"{summary.hours_per_million:.3g} hours of a worker."
        )
    if summary.failed:
        shown = "; ".join(f"{where} ({why.rstrip('.')})" for where, why in summary.failures[:_SHOWN])
        more = f"; and {summary.failed - _SHOWN} more" if summary.failed > _SHOWN else ""
        said.append(f"Failed, and asked again by the same command: {shown}{more}.")
    return said
