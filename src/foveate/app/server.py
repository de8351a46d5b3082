"""Serves the page until it is told to stop."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from ..data.loading import LoadedModel
from .errors import AppError

HOST, PORT = "127.0.0.1", 7860


@contextmanager
def serving(session: LoadedModel, host: str = HOST, port: int = PORT) -> Iterator[str]:
    """The page for a model, from now on until the block is left.

    Args:
        session: the model.
        host: the address to listen at; ``"0.0.0.0"`` lets other machines in.
        port: 0 for any that is free.

    Yields:
        where the page is.

    Raises:
        AppError: when gradio is missing, or nothing can listen there.
    """
    from .page import build, import_gradio, look

    require_gradio()
    port = require_port(host, port)
    page, desk = build(session)
    try:
        _, url, _ = page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, **look(import_gradio())
        )
        yield url
    except OSError as error:
        raise AppError(f"the page cannot be shown at {host}:{port} ({error}); give another --port.") from error
    finally:
        page.close(verbose=False)
        desk.close()


def require_gradio() -> None:
    """Raise AppError where gradio is not installed; it is not imported, which takes seconds."""
    if importlib.util.find_spec("gradio") is None:
        raise AppError("the page needs gradio, which is not installed; run in the clone: pip install -e '.[app]'.")


def require_port(host: str, port: int) -> int:
    """A port that something can listen at now: `port` itself, or a free one for 0; AppError where it is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with closing(socket.socket(family, socket.SOCK_STREAM)) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
            return int(tried.getsockname()[1])
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AppError(f"nothing can listen at {host}:{port} ({reason}); give another --port, or --host.") from None
