"""What is counted on a server, without one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

prometheus = pytest.importorskip("prometheus_client")

from foveate.errors import BudgetError  # noqa: E402
from foveate.serving.vllm import metrics  # noqa: E402

pytestmark = pytest.mark.vllm


def value(name: str, **labels: str) -> float:
    return prometheus.REGISTRY.get_sample_value(name, labels) or 0.0


def test_images_and_tokens_are_counted_by_model_method_and_modality() -> None:
    counts = metrics.Metrics("a/model", interval=60)
    counts.count_image("idpruner", "image", 1296, 324)
    counts.count_image("idpruner", "image", 16, 4)
    counts.count_image("none", "video", 100, 100)
    labels = {"model_name": "a/model", "method": "idpruner", "modality": "image"}
    assert value("foveate_images_total", **labels) == 2
    assert value("foveate_visual_tokens_total", **labels) == 1312
    assert value("foveate_visual_tokens_kept_total", **labels) == 328
    assert value("foveate_visual_tokens_kept_total", model_name="a/model", method="none", modality="video") == 100


def test_refusals_are_counted_by_the_class_of_their_error() -> None:
    metrics.Metrics("refusing", interval=60).count_refusal(BudgetError("too much"))
    assert value("foveate_requests_refused_total", model_name="refusing", reason="BudgetError") == 1


def test_one_line_an_interval_and_none_when_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(metrics.logger, "info", lambda text, *parts: lines.append(text % parts))
    counts = metrics.Metrics("quick", interval=0.05)
    for _ in range(3):
        counts.count_image("idpruner", "image", 100, 25)
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer) and thread.interval < 1:
            thread.join()
    time.sleep(0.1)  # longer than an interval
    assert lines == ["foveate: 3 images, 75 of 300 visual tokens kept (25%)"]


@pytest.mark.parametrize(
    ("counts", "broken", "line"),
    [
        (Counter(refused=2), 0, "foveate: 0 images, 0 of 0 visual tokens kept, 2 requests refused"),
        (
            Counter(images=1, before=10, kept=5),
            3,
            "foveate: 1 images, 5 of 10 visual tokens kept (50%), 3 images non-finite since the start",
        ),
    ],
)
def test_lines(counts: Counter[str], broken: int, line: str) -> None:
    assert metrics.summary(counts, broken) == line


def test_what_other_processes_count_is_seen_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = tmp_path / "count"
    shared.touch()
    monkeypatch.setenv("FOVEATE_NON_FINITE", str(shared))
    code = "from foveate.serving.vllm.metrics import count_non_finite as count; count(2); count(1)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    metrics.count_non_finite(1)
    assert metrics.non_finite() == 7


def test_without_a_server_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOVEATE_NON_FINITE", raising=False)
    metrics.count_non_finite(1)
    assert metrics.non_finite() == 0
