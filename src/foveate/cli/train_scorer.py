"""``foveate train scorer``: an importance scorer for a model, by which visionselector and idpruner then prune."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.loading import TESTBED, LoadOptions, require_model
from .errors import going_on
from .model_options import DEVICE, DEVICE_MAP, DTYPE, MAX_PIXELS, MODEL
from .paths import require_folder
from .tables import count
from .training_options import (
    DATA,
    MICRO_BATCH,
    OUTPUT,
    SAMPLES,
    SAVE_EVERY,
    SKIP_BAD,
    announce,
    fingerprint,
    generate_samples,
    open_model,
    read_data,
    step_bar,
)

if TYPE_CHECKING:
    from ..training import ScorerRecipe


def scorer(
    model: MODEL,
    data: DATA,
    output: OUTPUT,
    keep: Annotated[str, typer.Option(help="What the soft mask sums to: a percentage, a fraction or a count.")] = "20%",
    scope: Annotated[str, typer.Option(help="What has a budget of its own: image, frame or prompt.")] = "image",
    gate: Annotated[
        str, typer.Option(help="What the mask acts on: attention, or embeddings as in VisionSelector's paper.")
    ] = "attention",
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Questions a step, over all processes.")] = 128,
    micro_batch: MICRO_BATCH = 1,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate of AdamW.")] = 5e-5,
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the learning rate rises.")] = 0.03,
    constraint: Annotated[
        tuple[float, float],
        typer.Option(
            metavar="FIRST LAST",
            help="Weight of the constraint in the first and in the last step: two numbers, such as 0.1 2.",
        ),
    ] = (0.1, 2.0),
    at: Annotated[
        str, typer.Option(metavar="encoder:K", help="Rank at a block of the vision encoder instead of before the LLM.")
    ] = "",
    teacher: Annotated[
        str, typer.Option(help="With --at: the method that the scorer learns from, a name or JSON with its settings.")
    ] = "idpruner",
    width: Annotated[
        int | None, typer.Option(min=1, help="Width of queries and keys.", show_default="half the embeddings'")
    ] = None,
    samples: SAMPLES = 16_000,
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights, order and generated scenes.")] = 42,
    save_every: SAVE_EVERY = 50,
    skip_bad: SKIP_BAD = False,
    device: DEVICE = None,
    dtype: DTYPE = None,
    device_map: DEVICE_MAP = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Train a scorer of visual tokens for a model. Run the same command again to resume."""
    options = LoadOptions(device, dtype, device_map, max_pixels)
    require_model(model)

    from ..training import ScorerRecipe, example_of, train_scorer

    recipe = ScorerRecipe(
        keep=keep,
        scope=scope,  # type: ignore[arg-type]  # checked there
        gate=gate,  # type: ignore[arg-type]
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        warmup=warmup,
        constraint=constraint,
        width=width,
        seed=seed,
        at=at,
        teacher=teacher,
    )
    require_folder(output, "-o", [] if data == TESTBED else [Path(data)])
    read, bad = read_data(data, skip_bad)
    accelerator, session, read, bad = open_model(model, options, data, read, bad, skip_bad)
    questions = read or generate_samples(session, samples, seed)

    steps = recipe.steps(len(questions))
    size = f"{count(len(questions), 'question')} in {count(steps, 'step')}"
    announce(accelerator, size, bad)
    with going_on(), step_bar(accelerator.is_main_process) as show:
        train_scorer(
            session.model,
            functools.partial(example_of, session.processor),
            questions,
            recipe,
            output,
            facts={"model": session.label, "data": fingerprint(questions)},
            padding=session.processor.tokenizer.pad_token_id or 0,
            micro_batch=micro_batch,
            save_every=save_every,
            on_step=show,
            accelerator=accelerator,
        )
    if accelerator.is_main_process:
        path = output / "scorer.safetensors"
        typer.echo(f"Trained on {size}: {path}")
        typer.echo(f"Use it with: {_use(recipe, str(path))}")


def _use(recipe: ScorerRecipe, path: str) -> str:
    """The line of Python that prunes by a scorer."""
    if recipe.block is None:
        return f'foveate.prune(model, "idpruner", keep=0.25, scorer={path!r})'
    there = f"foveate.get_method('visionselector', scorer={path!r})"
    methods = f"[foveate.InEncoder({there}, block={recipe.block}), 'idpruner']"
    return f"foveate.prune(model, {methods}, keep=[{recipe.keep}, {float(recipe.keep) / 2:g}])"
