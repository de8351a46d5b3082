"""What is counted on a server, without one."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

prometheus = pytest.importorskip("prometheus_client")

from foveate.errors import BudgetError  # noqa: E402
from foveate.serving.vllm import metrics  # noqa: E402

pytestmark = pytest.mark.vllm


def value(name: str, **labels: str) -> float:
    return prometheus.REGISTRY.get_sample_value(name, labels) or 0.0


def test_images_and_tokens_are_counted_by_model_method_and_modality() -> None:
    counts = metrics.Metrics(interval=60)
    counts.count_image("a/model", "idpruner", "image", 1296, 324)
    counts.count_image("a/model", "idpruner", "image", 16, 4)
    counts.count_image("a/model", "none", "video", 100, 100)
    labels = {"model_name": "a/model", "method": "idpruner", "modality": "image"}
    assert value("foveate_images_total", **labels) == 2
    assert value("foveate_visual_tokens_total", **labels) == 1312
    assert value("foveate_visual_tokens_kept_total", **labels) == 328
    assert value("foveate_visual_tokens_kept_total", model_name="a/model", method="none", modality="video") == 100


def test_refusals_are_counted_by_the_class_of_their_error() -> None:
    counts, error = metrics.Metrics(interval=60), BudgetError("too much")
    counts.count_refusal("refusing", error)
    counts.count_refusal("refusing", error)  # as it passes another check on its way to the client
    assert value("foveate_requests_refused_total", model_name="refusing", reason="BudgetError") == 1


def test_one_line_an_interval_and_none_when_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.delenv("FOVEATE_FAULTS", raising=False)  # which other tests of this process may have counted
    monkeypatch.setattr(metrics.LOGGER, "info", lambda text, *parts: lines.append(text % parts))
    counts = metrics.Metrics(interval=0.05)
    for _ in range(3):
        counts.count_image("a/model", "idpruner", "image", 100, 25)
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer) and thread.interval < 1:
            thread.join()
    time.sleep(0.1)  # longer than an interval
    assert lines == ["foveate: images 3, visual tokens 300 to 75 (25%)"]


@pytest.mark.parametrize(
    ("counts", "broken", "line"),
    [
        (Counter(refused=2), 0, "foveate: images 0, visual tokens 0 to 0, requests refused 2"),
        (
            Counter(images=1, before=10, kept=5),
            3,
            "foveate: images 1, visual tokens 10 to 5 (50%), images at fault since the start 3",
        ),
    ],
)
def test_lines(counts: Counter[str], broken: int, line: str) -> None:
    assert metrics.summary(counts, broken) == line
