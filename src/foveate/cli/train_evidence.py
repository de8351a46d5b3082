"""``foveate train evidence``: a scorer of what a question asks about, by which the method evidence then prunes."""

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
    from ..data.samples import Sample

_NO_BOXES = "it has no boxes; give it some, or learn by --labels answers, attention or gradient."


def evidence(
    model: MODEL,
    data: DATA,
    output: OUTPUT,
    labels: Annotated[
        str,
        typer.Option(
            help="What the first stage learns from: boxes of the data, or what the model tells of itself by attention "
            "or gradient; answers: only what the second stage does, too."
        ),
    ] = "answers",
    label_steps: Annotated[int, typer.Option(min=0, help="Steps of the first stage; none by answers.")] = 1200,
    answer_steps: Annotated[int, typer.Option(min=0, help="Steps of the second stage, by answers.")] = 20_000,
    batch: Annotated[int, typer.Option(min=1, help="Questions a step, over all processes.")] = 64,
    micro_batch: MICRO_BATCH = 1,
    draws: Annotated[int, typer.Option(min=2, help="Sets of tokens drawn for each question by answers.")] = 16,
    shares: Annotated[
        tuple[float, float],
        typer.Option(metavar="LEAST MOST", help="What the sets keep of an image, drawn between two shares."),
    ] = (0.04, 0.125),
    positives: Annotated[
        float, typer.Option(help="Share of the tokens that are evidence, by attention or gradient.")
    ] = 0.05,
    blind: Annotated[float, typer.Option(help="Share of questions that the scorer is not shown.")] = 0.3,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate of AdamW, of both stages.")] = 1e-3,
    width: Annotated[int, typer.Option(min=1, help="Width of the scorer's layers.")] = 96,
    layers: Annotated[int, typer.Option(min=1, help="Layers of attention.")] = 2,
    heads: Annotated[int, typer.Option(min=1, help="Heads in each; they divide the width.")] = 4,
    samples: SAMPLES = 16_000,
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights, order, draws and generated scenes.")] = 0,
    save_every: SAVE_EVERY = 50,
    skip_bad: SKIP_BAD = False,
    device: DEVICE = None,
    dtype: DTYPE = None,
    device_map: DEVICE_MAP = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Train a scorer of what questions ask about for a model. Run the same command again to resume."""
    options = LoadOptions(device, dtype, device_map, max_pixels)
    require_model(model)

    from ..data.samples import BadLine, in_order, unusable
    from ..training import EvidenceRecipe, evidence_example_of, train_evidence

    recipe = EvidenceRecipe(
        labels=labels,  # type: ignore[arg-type]  # checked there
        label_steps=label_steps,
        answer_steps=answer_steps,
        batch=batch,
        draws=draws,
        shares=shares,
        positives=positives,
        blind=blind,
        learning_rate=learning_rate,
        width=width,
        layers=layers,
        heads=heads,
        seed=seed,
    )
    require_folder(output, "-o", [] if data == TESTBED else [Path(data)])
    read, bad = read_data(data, skip_bad)
    boxes = labels == "boxes"
    faults = {one.id: why for one in read if boxes and (why := _fault(one))}
    if faults:
        without = [BadLine(one.where, faults[one.id]) for one in read if one.id in faults]
        read, bad = [one for one in read if one.id not in faults], in_order([*bad, *without])
        if not (skip_bad and read):
            raise unusable(Path(data), bad, skip_bad)
    accelerator, session, read, bad = open_model(model, options, data, read, bad, skip_bad)
    questions = read or generate_samples(session, samples, seed)

    size = f"{count(len(questions), 'question')} in {count(recipe.steps, 'step')}"
    announce(accelerator, size, bad)
    with going_on(), step_bar(accelerator.is_main_process) as show:
        train_evidence(
            session.model,
            functools.partial(evidence_example_of, session.processor, boxes=boxes),
            questions,
            recipe,
            output,
            facts={"model": session.label, "data": fingerprint(questions, boxes)},
            padding=session.processor.tokenizer.pad_token_id or 0,
            micro_batch=micro_batch,
            save_every=save_every,
            on_step=show,
            accelerator=accelerator,
        )
    if accelerator.is_main_process:
        typer.echo(f"Trained on {size}: {output / 'evidence.safetensors'}")
        typer.echo(f'Use it with: foveate.prune(model, "evidence", keep=0.1, scorer={str(output)!r})')


def _fault(sample: Sample) -> str:
    """Why the boxes of a sample cannot be learned from, or ""."""
    from ..data.images import image_size

    if not sample.boxes:
        return _NO_BOXES
    stored = [image_size(one) if isinstance(one, Path) else one.size for one in sample.pictures]
    # Opened, and so turned as its camera was held, only where the first bytes leave a doubt.
    return _outside(sample, stored) and _outside(sample, [one.size for one in sample.open()])


def _outside(sample: Sample, sizes: list[tuple[int, int]]) -> str:
    """Which box shows nothing of its picture, or ""."""
    for boxes, (width, height) in zip(sample.boxes, sizes, strict=True):
        for left, top, right, bottom in boxes:
            if left >= width or top >= height or right <= 0 or bottom <= 0:
                box, size = f"[{left:g}, {top:g}, {right:g}, {bottom:g}]", f"{width} x {height}"
                return f"its box {box} lies outside the picture of {size} pixels; give boxes in pixels of the picture."
    return ""
