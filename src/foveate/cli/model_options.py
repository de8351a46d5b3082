"""Which model a command loads, and how: the same options wherever one is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from ..data.loading import MODEL_HELP

MODEL = Annotated[str, typer.Option(help=MODEL_HELP)]
DEVICE = Annotated[
    str | None, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, mps.", show_default="a GPU, else the CPU")
]
DTYPE = Annotated[
    str | None,
    typer.Option(help="Of the weights: auto, float32, bfloat16 or float16.", show_default="the checkpoint's"),
]
DEVICE_MAP = Annotated[
    str | None,
    typer.Option(help="Spread the weights over all GPUs and memory, such as auto; needs accelerate."),
]
MAX_PIXELS = Annotated[
    int | None,
    typer.Option(min=1, help="Scale larger pictures down to so many pixels, where the model keeps their size."),
]
