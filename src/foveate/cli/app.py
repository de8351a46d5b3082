"""``foveate app``: a web page that asks a model about pictures with several methods, and shows what each keeps."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from ..app.server import HOST, PORT, require_gradio, require_port, serving
from ..data.loading import LoadOptions, load, require_model
from ..data.shipped import DEFAULT
from .model_options import DEVICE, DEVICE_MAP, DTYPE, MAX_PIXELS, MODEL


def show_page(
    model: MODEL = DEFAULT,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where the page is on this machine; 0: any.")] = PORT,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines see the page, too.")] = HOST,
    device: DEVICE = None,
    dtype: DTYPE = None,
    device_map: DEVICE_MAP = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Show a web page: ask about pictures with several methods at once, and see what each keeps."""
    options = LoadOptions(device, dtype, device_map, max_pixels)
    require_model(model)
    require_gradio()
    require_port(host, port)
    with serving(load(model, options), host, port) as url:
        typer.echo(f"The page for {model} is at {url} until you press Ctrl-C.")
        threading.Event().wait()
