"""Which questions a command asks, of a suite or of one's own, and how: the same options wherever some are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DATASET = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Your own questions: a JSONL file, or the folder of one.")
]
FAMILIES = Annotated[
    str | None, typer.Option(help="Only these kinds of question.", show_default="all that the model can be asked")
]
METRIC = Annotated[
    str | None,
    typer.Option(
        help="How answers of --dataset are judged, where a line does not say so: exact, contains or iou.",
        show_default="exact",
    ),
]
SUFFIX = Annotated[str, typer.Option(help='What every question of --dataset ends with, such as "Answer in one word."')]
SKIP_BAD = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out lines of --dataset that cannot be used, and count them.")
]
BATCH = Annotated[int, typer.Option(min=1, help="Questions asked at once.")]
MAX_NEW_TOKENS = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
