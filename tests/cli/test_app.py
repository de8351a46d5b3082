"""``foveate app``: what it refuses before a model is loaded. The page itself is tested in a browser, in tests/app."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from cli.run_command import assert_one_sentence, run


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("foveate.data.loading.load_shipped", load)


def pretend_gradio(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    find = importlib.util.find_spec
    answer = find("json") if there else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: answer if name == "gradio" else find(name))


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gradio(monkeypatch, there=False)
    assert_one_sentence(run("app"), "the page needs gradio", "pip install -e '.[app]'")


def test_wrong_options(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gradio(monkeypatch, there=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_sentence(
            run("app", "--port", port), f"nothing can listen at 127.0.0.1:{port} (address already in use)"
        )
    assert_one_sentence(run("app", "--host", "192.0.2.1", "--port", 0), "give another --port, or --host")
    assert_one_sentence(run("app", "--model", "testbed-lava"), "did you mean 'testbed-llava'?")
    assert_one_sentence(run("app", "--dtype", "float8"), "unknown dtype 'float8'")
    assert_one_sentence(run("app", "--port", "99999"), "port")
