"""What commands that run on Ray share."""

from __future__ import annotations

from typing import Annotated

import typer

ADDRESS = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="A running Ray cluster, or auto.", show_default="RAY_ADDRESS, else this machine alone"
    ),
]
